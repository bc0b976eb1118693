"""Image classifiers: the CIFAR networks of the literature (importing this registers them with timm), and the Hub's."""

from hfkd.models.checkpoints import load_checkpoint, read_state_dict
from hfkd.models.cifar import CIFAR_NETS
from hfkd.models.classifier import image_classifier
from hfkd.models.inputs import InputSpec, input_spec

__all__ = ["CIFAR_NETS", "InputSpec", "image_classifier", "input_spec", "load_checkpoint", "read_state_dict"]
