"""A linear layer in front of a student's classifier, which makes its features as wide as its teacher's."""

from torch import nn
from transformers import PreTrainedModel

from hfkd.models.cifar import CifarNet


def with_projector(model: PreTrainedModel, width: int) -> PreTrainedModel:
    """`model` with a linear layer of `width` outputs before its classifier, both fresh; it is changed and returned.

    Of method LSH (`lsh`), where student and teacher differ in width: the classifier reads the projected features, so
    the layer stays when the teacher has gone. It is part of the network: saved with it, and there again in
    `from_pretrained`. `model` is an `image_classifier` of one of the CIFAR networks; ValueError for any other.
    """
    network = getattr(model, "timm_model", None)
    if not isinstance(network, CifarNet):
        inner = type(model if network is None else network).__name__
        raise ValueError(f"{inner} takes no projector: use one of the CIFAR networks (timm.list_models('cifar_*'))")
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"width {width!r}: give the number of features of the teacher, a whole number above 0")
    weight = next(network.parameters())
    network.projector = nn.Linear(network.num_features, width, device=weight.device, dtype=weight.dtype)
    network.head_hidden_size = width
    network.reset_classifier(network.num_classes)
    model.config.model_args = (model.config.model_args or {}) | {"projector": width}
    return model
