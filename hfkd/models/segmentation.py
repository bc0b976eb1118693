"""Segmentation networks by name: from torchvision, transformers, or a function of a custom module.

C classes.
"""

import difflib
import importlib
import os
import re
from collections.abc import Sequence
from typing import Any

import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation import LRASPP
from transformers import AutoModelForSemanticSegmentation

from hfkd.models.checkpoints import load_checkpoint
from hfkd.models.label_names import class_names, warn_of_renamed
from hfkd.models.new_head import refuse_new_head
from hfkd.models.text_networks import loaded

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
WITH_AUXILIARY_HEAD = ("deeplabv3_", "fcn_")
SMALL = "lraspp_mobilenet_v3_small"


def segmentation_network(
    name: str,
    num_labels: int,
    checkpoint: str | os.PathLike[str] | None = None,
    label_names: Sequence[str] | None = None,
    auxiliary_head: bool = False,
    new_head: bool = False,
) -> nn.Module:
    """A network whose output is maps of logits [B, num_labels, h, w], new or stored.

    - `name` is a network of torchvision ("lraspp_mobilenet_v3_large"): new weights, with an `auxiliary_head` if it
    supports one; or "lraspp_mobilenet_v3_small", which is built from torchvision's modules.
    - `name` contains a "/" or is a folder ("nvidia/mit-b0", "runs/student"): a transformers model. Its head is new if
    none is stored, or with `new_head`.
    - `name` is "module:function": the result of this function, called without arguments. The module is imported.
    - `checkpoint` is a file with weights for the whole model (`load_checkpoint`). Raises ValueError for any other name,
    and for a stored head of other classes.
    """
    if new_head:
        other = FUNCTION.fullmatch(name) is not None or name in _fresh()
        refuse_new_head(name, checkpoint, stored=not other)
    if FUNCTION.fullmatch(name):
        network = _of_function(name)
    elif name in _fresh():
        more = {"aux_loss": True} if auxiliary_head else {}
        if auxiliary_head and not name.startswith(WITH_AUXILIARY_HEAD):
            raise ValueError(f"auxiliary_head=True, but {name} has no auxiliary head: leave auxiliary_head out")
        network = (
            lraspp_mobilenet_v3_small(num_labels)
            if name == SMALL
            else torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=num_labels, **more)
        )
    elif "/" in name or os.path.isdir(name):
        network = _stored(name, num_labels, label_names, new_head, new_head or checkpoint is not None)
    else:
        close = difflib.get_close_matches(name, _fresh(), n=5, cutoff=0.4)
        raise ValueError(
            f"unknown segmentation network {name!r}: pass one of torchvision's {close or _fresh()}, a Hub id or "
            "folder of a transformers model, or module:function"
        )
    if checkpoint is not None:
        load_checkpoint(network, checkpoint)
    return network.eval()


def segmentation_teacher(name: str, num_labels: int, checkpoint: str | None = None) -> nn.Module:
    """`segmentation_network` for a trained network: raises ValueError if its weights would be random."""
    if checkpoint is None and name in _fresh():
        raise ValueError(f"the teacher {name!r} would have random weights: pass its checkpoint")
    if checkpoint is not None or FUNCTION.fullmatch(name) or not ("/" in name or os.path.isdir(name)):
        return segmentation_network(name, num_labels, checkpoint)
    network, info = loaded(AutoModelForSemanticSegmentation, name, "float32")
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"the teacher {name} has no stored weights for {missing[0]} and {len(missing) - 1} others, which would be "
            "random: use a network that was trained for segmentation"
        )
    return network.eval()


def set_batch_norm_momentum(network: nn.Module, momentum: float) -> None:
    """Set the momentum of all batch norms: torchvision's MobileNetV3 has 0.01, which is too slow for short runs.

    With outdated running statistics, the accuracy in evaluation is far too low.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum


def lraspp_mobilenet_v3_small(num_labels: int) -> LRASPP:
    """LR-ASPP on MobileNetV3-Small (Howard et al. 2019), 1.1 M parameters, with new weights.

    Built as in torchvision on MobileNetV3-Large: from a map of stride 8, and the last one, of stride 16 and dilated.
    """
    backbone = torchvision.models.mobilenet_v3_small(weights=None, dilated=True).features
    maps = IntermediateLayerGetter(backbone, return_layers={"2": "low", "12": "high"})
    return LRASPP(maps, low_channels=24, high_channels=576, num_classes=num_labels)


def _fresh() -> list[str]:
    """The networks that are built with new weights."""
    return sorted([*torchvision.models.list_models(module=torchvision.models.segmentation), SMALL])


def _stored(
    name: str, num_labels: int, label_names: Sequence[str] | None, new_head: bool, replace_head: bool
) -> nn.Module:
    labels = class_names(label_names, num_labels)
    network, info = loaded(AutoModelForSemanticSegmentation, name, "float32", **labels)
    if info["mismatched_keys"] and not replace_head:
        weight, stored, wanted = min(info["mismatched_keys"])
        raise ValueError(
            f"{weight} of {name} has the shape {list(stored)}, but the classes of the data need {list(wanted)}: pass "
            "--new_head to replace it by new weights"
        )
    if not replace_head and not info["missing_keys"]:
        warn_of_renamed(name, label_names)
    if new_head and not info["mismatched_keys"]:
        _renew_head(network, name, num_labels)
    return network


def _renew_head(network: nn.Module, name: str, num_labels: int) -> None:
    """New weights for the layers that would be new for another number of classes, but were loaded for this one."""
    _, info = loaded(AutoModelForSemanticSegmentation, name, "float32", num_labels=num_labels + 1)
    for layer in sorted({weight.rpartition(".")[0] for weight, *_ in info["mismatched_keys"]}):
        reset: Any = network.get_submodule(layer)
        reset.reset_parameters()


def _of_function(name: str) -> nn.Module:
    module, _, function = name.partition(":")
    try:
        made: Any = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{name!r} does not return a network ({error}): name a module on the path (PYTHONPATH) and one of its "
            "functions that takes no arguments"
        ) from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"{name!r} returns a {type(made).__name__} instead of a torch.nn.Module: return the network")
    return made
