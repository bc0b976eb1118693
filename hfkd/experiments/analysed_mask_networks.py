"""The networks of an analysis of masks: folders that runs left, and a teacher as a run names it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AutoConfig
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from hfkd.data.mask_arguments import MaskDataArguments
from hfkd.models import InputSpec
from hfkd.models.label_names import order_of
from hfkd.models.segmentation import segmentation_network, segmentation_teacher
from hfkd.reports.results import RESULTS_NAME
from hfkd.teachers import FrozenTeacher
from hfkd.utils.json_file import read_json

IOU = "eval_iou_"


class NamedMaskNetworks(Protocol):
    """The flags that name the networks, see `MaskAnalysisArguments`."""

    teacher: str
    students: list[str]
    teacher_checkpoint: str | None
    teacher_classes: list[int] | None

    @property
    def describes_teacher(self) -> bool: ...

    @property
    def wanted(self) -> InputSpec | None: ...


def load_mask_networks(
    args: NamedMaskNetworks, data: MaskDataArguments, received: InputSpec, device: torch.device
) -> list[FrozenTeacher]:
    """The teacher and the students, frozen, with the classes in the data's order; each sees images as it was trained.

    Raises ValueError for a folder that no run of segmentation left, and for other classes than those of the data.
    """
    for student in args.students:
        if not Path(student).is_dir():
            raise ValueError(f"{student!r} is no folder: name those that runs of `hfkd segment` left")
    if Path(args.teacher).is_dir() and not args.describes_teacher:
        teacher = _of_run(args.teacher, data, received)
    else:
        network = segmentation_teacher(args.teacher, data.classes, args.teacher_checkpoint)
        teacher = FrozenTeacher(network, received, args.wanted, classes=args.teacher_classes)
    networks = [teacher, *(_of_run(student, data, received) for student in args.students)]
    for name, one in zip([args.teacher, *args.students], networks, strict=True):
        _check(name, one.to(device), data, device)
    return networks


def _of_run(folder: str, data: MaskDataArguments, received: InputSpec) -> FrozenTeacher:
    """What a run left: a model of transformers, or the weights of the network that its results.json names."""
    path = Path(folder)
    if (path / CONFIG_NAME).is_file():
        own = AutoConfig.from_pretrained(folder).num_labels
        if own != data.classes:
            raise ValueError(f"{folder} has {own} classes, and the data {data.classes}: take one trained on them")
        return FrozenTeacher(segmentation_network(str(path.absolute()), data.classes), received)
    results = next((one / RESULTS_NAME for one in (path, path.parent) if (one / RESULTS_NAME).is_file()), None)
    if results is None or not (path / SAFE_WEIGHTS_NAME).is_file():
        raise ValueError(
            f"{folder} has no {CONFIG_NAME}, nor {SAFE_WEIGHTS_NAME} and a {RESULTS_NAME}: name the folder that a run "
            "of `hfkd segment` left, or a checkpoint-* in it"
        )
    found = read_json(results)
    config = found["config"]
    if "image_mean" not in config or "student_name" not in config:
        raise ValueError(f"{results} is not of a run of `hfkd segment`: it names no network of masks")
    network = _network(config, data, str(path / SAFE_WEIGHTS_NAME))
    wanted = InputSpec(tuple(config["image_mean"]), tuple(config["image_std"]), tuple(config["image_size"]))
    return FrozenTeacher(network, received, wanted, label_names=_names(found.get("epochs", [])))


def _network(config: dict[str, Any], data: MaskDataArguments, weights: str) -> nn.Module:
    auxiliary = bool(config.get("auxiliary_head"))
    return segmentation_network(config["student_name"], data.classes, weights, auxiliary_head=auxiliary)


def _names(epochs: Sequence[dict[str, Any]]) -> list[str] | None:
    """The classes in the order in which a run's evaluations have them; None where it has none."""
    names = [key.removeprefix(IOU) for row in epochs[-1:] for key in row if key.startswith(IOU)]
    return names or None


def _check(name: str, network: FrozenTeacher, data: MaskDataArguments, device: torch.device) -> None:
    """Put the classes in the data's order, and look at what one black image gives."""
    if network.label_names is not None and data.label_names is not None:
        network.reorder(order_of(network.label_names, data.label_names, name, "the data"))
    height, width = data.image_size
    maps = network(pixel_values=torch.zeros(1, 3, height, width, device=device))
    if maps.ndim != 4 or maps.shape[1] != data.classes:
        raise ValueError(
            f"{name} gives outputs {tuple(maps.shape)} of an image, and the data has {data.classes} classes: take a "
            "network of masks that was trained on them, or name its outputs (teacher_classes)"
        )
