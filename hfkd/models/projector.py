"""A linear layer before a student's classifier, which gives its features the width of the teacher's."""

from torch import nn
from transformers import PreTrainedModel

from hfkd.models.cifar import CifarNet


def with_projector(model: PreTrainedModel, width: int) -> PreTrainedModel:
    """Insert a linear layer with `width` outputs before the classifier of `model`, in place; both get new weights.

    This is part of the method LSH (`lsh`) for a student and a teacher of different widths: the classifier reads the
    projected features, so that the layer is needed after training too. It is saved with the network, and restored by
    `from_pretrained`. `model` is an `image_classifier` of one of the CIFAR networks; others raise ValueError. Returns
    `model`.
    """
    network = getattr(model, "timm_model", None)
    if not isinstance(network, CifarNet):
        inner = type(model if network is None else network).__name__
        raise ValueError(
            f"{inner} does not support a projector: use one of the CIFAR networks (timm.list_models('cifar_*'))"
        )
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"width={width!r} must be a whole number above 0: pass the number of features of the teacher")
    weight = next(network.parameters())
    network.projector = nn.Linear(network.num_features, width, device=weight.device, dtype=weight.dtype)
    network.head_hidden_size = width
    network.reset_classifier(network.num_classes)
    model.config.model_args = (model.config.model_args or {}) | {"projector": width}
    return model
