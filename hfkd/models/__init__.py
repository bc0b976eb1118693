"""Image classifiers: the CIFAR networks of the literature, which are registered with timm on import, and Hub models."""

from hfkd.models.checkpoints import load_checkpoint, read_state_dict
from hfkd.models.cifar import CIFAR_NETS
from hfkd.models.classifier import image_classifier, image_teacher, image_teachers
from hfkd.models.inputs import InputSpec, input_spec, processor_spec, resized_spec, same_statistics
from hfkd.models.network_arguments import NetworkArguments
from hfkd.models.peers import Peers
from hfkd.models.processors import Preparation, image_processor
from hfkd.models.projector import with_projector
from hfkd.models.pruning import prune_layers
from hfkd.models.regions import DetectorCall
from hfkd.models.without_adapters import without_adapters

__all__ = [
    "CIFAR_NETS",
    "DetectorCall",
    "InputSpec",
    "NetworkArguments",
    "Peers",
    "Preparation",
    "image_classifier",
    "image_processor",
    "image_teacher",
    "image_teachers",
    "input_spec",
    "load_checkpoint",
    "processor_spec",
    "prune_layers",
    "read_state_dict",
    "resized_spec",
    "same_statistics",
    "with_projector",
    "without_adapters",
]
