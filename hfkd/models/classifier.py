"""Image classifiers by name: timm architectures (including those of hfkd), Hub ids and saved folders."""

import difflib
import os
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg_value
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from hfkd.models.checkpoints import load_checkpoint, naming_unreadable, refuse_no_model, refuse_other_architecture
from hfkd.models.label_names import class_names, label_names_in, warn_of_renamed
from hfkd.models.new_head import refuse_new_head
from hfkd.models.saved_beside import INPUT_KEYS, folder_of_weights, take_what_is_said


def is_architecture(name: str) -> bool:
    """Whether `name` is a timm architecture, not a Hub id or a folder with a "/"."""
    return "/" not in name and timm.is_model(name)


def image_classifier(
    name: str | os.PathLike[str],
    num_labels: int,
    checkpoint: str | os.PathLike[str] | None = None,
    label_names: Sequence[str] | None = None,
    new_head: bool = False,
) -> PreTrainedModel:
    """A transformers image classifier, in eval mode: `model(pixel_values).logits` is [B, num_labels].

    - `name` is a timm architecture ("cifar_resnet20", "resnet50"): new weights with timm's initialisation.
    - `name` contains a "/" or is a folder ("timm/resnet50.a1_in1k", "runs/student"): the weights stored there.
    `num_labels` must be the stored number, unless `new_head=True` requests a new head or `checkpoint` provides it.
    - `checkpoint` is a file with weights for the whole model, loaded by `load_checkpoint`. If it is that of a saved
    model, the preparation of images and the class names are those in the config.json beside it.
    - `label_names` are written to the config (`id2label`, `label2id`), and saved with the model.
    """
    name = os.fspath(name)
    labels = _label_config(num_labels, label_names)
    if new_head:
        refuse_new_head(name, checkpoint, stored=not is_architecture(name))
    if is_architecture(name):
        model = _fresh(name, num_labels, labels)
    elif "/" in name or os.path.isdir(name):
        refuse_no_model(name)
        model = _stored(name, num_labels, labels, new_head, new_head or checkpoint is not None)
    else:
        raise ValueError(_unknown(name))
    if checkpoint is not None:
        refuse_other_architecture(model, checkpoint)
        load_checkpoint(model, checkpoint)
        take_what_is_said(model, checkpoint, label_names)
    return model.eval()


def image_teacher(
    name: str | os.PathLike[str],
    num_labels: int | None,
    checkpoint: str | os.PathLike[str] | None = None,
    label_names: Sequence[str] | None = None,
) -> PreTrainedModel:
    """`image_classifier` for a trained network: raises ValueError for an architecture without weights.

    With `num_labels=None` it has the stored number of classes, or that of the architecture's published weights. The
    network keeps its own class names: `label_names`, in the order of its logits, are for weights that have none.
    """
    described = None if checkpoint is None else folder_of_weights(checkpoint)
    if label_names is not None and _names_its_classes(described or os.fspath(name)):
        label_names = None
    if checkpoint is None and is_architecture(os.fspath(name)):
        raise ValueError(
            f"the teacher {os.fspath(name)!r} is an architecture with random weights: pass its checkpoint, or a Hub "
            "id or saved folder with weights"
        )
    number = _own_num_labels(os.fspath(name)) if num_labels is None else num_labels
    return image_classifier(name, number, checkpoint, label_names)


def image_teachers(
    names: Sequence[str],
    num_labels: int | None,
    checkpoints: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
) -> PreTrainedModel | list[PreTrainedModel]:
    """The `image_teacher` of each name: a single one, or a list of several.

    `checkpoints` has one file for each name, or is None. Raises ValueError if their numbers differ.
    """
    if checkpoints is not None and len(checkpoints) != len(names):
        raise ValueError(
            f"{len(checkpoints)} checkpoints for {len(names)} teachers {list(names)}: pass one for each teacher"
        )
    files: Sequence[str | None] = checkpoints or [None] * len(names)
    teachers = [image_teacher(name, num_labels, file, label_names) for name, file in zip(names, files, strict=True)]
    return teachers if len(teachers) > 1 else teachers[0]


def _own_num_labels(name: str) -> int:
    if is_architecture(name):
        published: Any = get_pretrained_cfg_value(name, "num_classes")
        return int(published)
    refuse_no_model(name)
    return AutoConfig.from_pretrained(name, trust_remote_code=False).num_labels


def _names_its_classes(name: str) -> bool:
    """Whether a Hub id or saved folder has class names other than numbers."""
    if "/" not in name and not os.path.isdir(name):
        return False
    refuse_no_model(name)
    return label_names_in(AutoConfig.from_pretrained(name, trust_remote_code=False)) is not None


def _label_config(num_labels: int, label_names: Sequence[str] | None) -> dict[str, Any]:
    if num_labels < 1:
        raise ValueError(f"num_labels={num_labels} must be at least 1: pass the number of classes in the data")
    if label_names is not None and len(label_names) != num_labels:
        raise ValueError(f"{len(label_names)} label_names for num_labels={num_labels}: pass one name for each class")
    return class_names(label_names, num_labels)


def _fresh(name: str, num_labels: int, labels: dict[str, Any]) -> PreTrainedModel:
    if "." in name:
        architecture, tag = name.split(".", 1)
        raise ValueError(
            f"{name!r}: the tag {tag!r} names published weights, which are only loaded by their Hub id: pass "
            f"'timm/{name}' for these weights, or {architecture!r} for new ones"
        )
    timm_model = timm.create_model(name, num_classes=num_labels)
    published: dict[str, Any] = vars(timm_model)["pretrained_cfg"]
    inputs = {key: published[key] for key in INPUT_KEYS if key in published}
    config = TimmWrapperConfig(architecture=name, **labels | {"pretrained_cfg": inputs})
    # transformers' wrapper initialises every weight from N(0, 0.02) when it is built, except on the meta device
    with torch.device("meta"):
        model = TimmWrapperForImageClassification(config)
    model.timm_model = timm_model
    return model


def _stored(name: str, num_labels: int, labels: dict[str, Any], new_head: bool, replace_head: bool) -> PreTrainedModel:
    stored = AutoConfig.from_pretrained(name, trust_remote_code=False).num_labels
    if stored == num_labels:
        labels = {key: value for key, value in labels.items() if key != "num_labels"}  # keep the stored label names
    elif not replace_head:
        raise ValueError(
            f"{name!r} has {stored} labels, not {num_labels}: pass num_labels={stored}, or new_head=True for a new "
            "classification layer"
        )
    else:
        # transformers' timm wrapper would keep the stored number with new names
        labels = labels | {"num_labels": num_labels}
    with naming_unreadable(name):
        model, info = AutoModelForImageClassification.from_pretrained(
            name, ignore_mismatched_sizes=replace_head, trust_remote_code=False, output_loading_info=True, **labels
        )
    if "id2label" in labels and not (replace_head or info["missing_keys"]):
        warn_of_renamed(name, list(labels["id2label"].values()))
    if new_head and stored == num_labels:
        _renew_head(model, num_labels)
    if isinstance(model, TimmWrapperForImageClassification):
        vars(model.config).pop("label_names", None)  # those of the file, which would be saved instead of new ones
    return model


def _renew_head(model: PreTrainedModel, num_labels: int) -> None:
    """New weights for the last layer, which was loaded because the number of classes is the same."""
    if isinstance(model, TimmWrapperForImageClassification):
        model.timm_model.reset_classifier(num_labels)
        return
    base = model.base_model
    body = set() if base is model else set(base.modules())  # CLIP's and SigLIP's are all of the model
    linear = [one for one in model.modules() if isinstance(one, nn.Linear) and one not in body]
    heads = [one for one in linear if one.out_features == num_labels][-1:] if base is model else linear
    if not heads:
        raise ValueError(
            f"new_head=True, and {type(model).__name__} has no linear layer behind its body that could be renewed: "
            "renew its classifier yourself, and give the network"
        )
    for layer in heads:
        layer.reset_parameters()


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
    near = f"close names are {close}" if close else "timm.list_models() lists the names"
    return f"unknown model {name!r}: {near}; a Hub id has the form 'owner/name', and a saved folder must exist"
