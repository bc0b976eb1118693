"""Loads the segmentation networks of an analysis: students from runs, and the teacher as in a run's flags."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from hfkd.data.mask_arguments import MaskDataArguments
from hfkd.experiments.earlier_run import iou_names
from hfkd.experiments.segmentation import mask_teacher
from hfkd.models import InputSpec
from hfkd.models.mask_teacher_arguments import MaskTeacherArguments
from hfkd.models.segmentation import segmentation_network, segmentation_teacher
from hfkd.reports.results import RESULTS_NAME
from hfkd.teachers import FrozenTeacher
from hfkd.teachers.class_order import order_for
from hfkd.utils.json_file import read_json


def load_mask_networks(
    teacher_name: str,
    students: Sequence[str],
    described: MaskTeacherArguments,
    data: MaskDataArguments,
    received: InputSpec,
    device: torch.device,
) -> list[FrozenTeacher]:
    """The teacher and the students, frozen, with classes in the data's order and each with its own normalisation.

    Raises ValueError for a folder that is not from a segmentation run, and for classes that differ from the data's.
    """
    for student in students:
        if not Path(student).is_dir():
            raise ValueError(f"{student!r} is not a folder: pass output folders of runs of `hfkd segment`")
    if Path(teacher_name).is_dir() and not described.describes_teacher:
        teacher = _of_run(teacher_name, data, received)
    else:
        network = segmentation_teacher(teacher_name, data.classes, described.teacher_checkpoint)
        teacher = mask_teacher(network, described, data.classes, received)
    networks = [teacher, *(_of_run(student, data, received) for student in students)]
    for name, one in zip([teacher_name, *students], networks, strict=True):
        _check(name, one.to(device), data, device)
    return networks


def _of_run(folder: str, data: MaskDataArguments, received: InputSpec) -> FrozenTeacher:
    """The network of a run: a transformers model, or the network named in its results.json, with its weights."""
    path = Path(folder)
    if (path / CONFIG_NAME).is_file():
        own = AutoConfig.from_pretrained(folder).num_labels
        if own != data.classes:
            raise ValueError(
                f"{folder} has {own} classes, but the data {data.classes}: use a network trained on this data"
            )
        return FrozenTeacher(segmentation_network(str(path.absolute()), data.classes), received)
    results = next((one / RESULTS_NAME for one in (path, path.parent) if (one / RESULTS_NAME).is_file()), None)
    if results is None or not (path / SAFE_WEIGHTS_NAME).is_file():
        raise ValueError(
            f"{folder} has neither {CONFIG_NAME} nor both {SAFE_WEIGHTS_NAME} and {RESULTS_NAME}: pass the output "
            "folder of a run of `hfkd segment`, or a checkpoint-* in it"
        )
    found = read_json(results)
    config = found["config"]
    if "image_mean" not in config or "student_name" not in config:
        raise ValueError(f"{results} is not from a run of `hfkd segment`: it does not name a segmentation network")
    network = _network(config, data, str(path / SAFE_WEIGHTS_NAME))
    wanted = InputSpec(tuple(config["image_mean"]), tuple(config["image_std"]), tuple(config["image_size"]))
    return FrozenTeacher(network, received, wanted, label_names=iou_names(found.get("epochs", [])))


def _network(config: dict[str, Any], data: MaskDataArguments, weights: str) -> nn.Module:
    auxiliary = bool(config.get("auxiliary_head"))
    return segmentation_network(config["student_name"], data.classes, weights, auxiliary_head=auxiliary)


def _check(name: str, network: FrozenTeacher, data: MaskDataArguments, device: torch.device) -> None:
    """Reorder the classes to the data's order, and check the output for one black image."""
    if network.label_names is not None and data.label_names is not None:
        network.reorder(order_for(network, data.label_names, name))
    height, width = data.image_size
    maps = network(pixel_values=torch.zeros(1, 3, height, width, device=device))
    if maps.ndim != 4 or maps.shape[1] != data.classes:
        raise ValueError(
            f"{name} has outputs of shape {tuple(maps.shape)} for an image, but the data has {data.classes} "
            "classes: use a segmentation network trained on this data, or select its outputs (teacher_classes)"
        )
