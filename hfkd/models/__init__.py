"""Image classifiers: the CIFAR networks of the literature (importing this registers them with timm), and the Hub's."""

from hfkd.models.checkpoints import load_checkpoint, read_state_dict
from hfkd.models.cifar import CIFAR_NETS
from hfkd.models.classifier import image_classifier, image_teacher
from hfkd.models.inputs import InputSpec, image_processor, input_spec, record_statistics

__all__ = [
    "CIFAR_NETS",
    "InputSpec",
    "image_classifier",
    "image_processor",
    "image_teacher",
    "input_spec",
    "load_checkpoint",
    "read_state_dict",
    "record_statistics",
]
