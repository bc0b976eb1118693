"""Loads the networks of an analysis by name, and checks them before any forward pass."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig

from hfkd.data import label_names, num_labels
from hfkd.data.collate import ImageCollator
from hfkd.data.first_rows import first_rows
from hfkd.evaluation.analysis import AnalysedNetwork
from hfkd.models import InputSpec, image_teacher, resized_spec
from hfkd.models.classifier import is_architecture
from hfkd.utils.launch import processes


class NamedNetworks(Protocol):
    """The flags for the networks, see `AnalysisArguments`."""

    teacher: str
    students: list[str]
    teacher_checkpoint: str | None
    student_checkpoints: list[str] | None
    teacher_classes: list[int] | None
    teacher_image_size: int | None
    use_cpu: bool


def load_networks(
    args: NamedNetworks, images: Any, received: InputSpec
) -> tuple[AnalysedNetwork, list[AnalysedNetwork]]:
    """The teacher and the students.

    Raises ValueError for an unknown name, weights that are missing or do not fit, classes that differ from the data's,
    and a network without penultimate features.
    """
    weights = [args.teacher_checkpoint, *_checkpoints(args)]
    networks = [args.teacher, *args.students]
    names = short_names([f"{file}/{name}" if file else name for name, file in zip(networks, weights, strict=True)])
    of_teacher = args.teacher_classes, args.teacher_image_size
    more = [of_teacher, *[(None, None)] * len(args.students)]
    loaded = [
        load_network(name, network, file, images, received, args.use_cpu, *flags)
        for name, network, file, flags in zip(names, networks, weights, more, strict=True)
    ]
    return loaded[0], loaded[1:]


def load_network(
    name: str,
    network: str,
    file: str | None,
    images: Any,
    received: InputSpec,
    use_cpu: bool = False,
    chosen: Sequence[int] | None = None,
    size: int | None = None,
) -> AnalysedNetwork:
    """One network, checked on two images. chosen: those of its classes that the data has; size: of its images."""
    classes, data_names = num_labels(images), label_names(images)
    hub_id = network.count("/") == 1 and not network.startswith((".", "/", "~"))
    if not (is_architecture(network) or hub_id or Path(network).is_dir()):
        raise ValueError(
            f"{network!r} is neither the output folder of a run, nor a Hub id (owner/name), nor a timm name: correct it"
        )
    if Path(network).is_dir() and not (Path(network) / "config.json").is_file():
        raise ValueError(f"{network} has no config.json: pass the output folder of a run, or a checkpoint-* in it")
    own = AutoConfig.from_pretrained(network).num_labels if Path(network).is_dir() and chosen is None else classes
    if own != classes:
        raise ValueError(f"{name} has {own} classes, but the data {classes}: use a network trained on this data")
    model = _loaded(network, classes if chosen is None else None, file)
    device = torch.device("cpu") if use_cpu else processes().device
    found = AnalysedNetwork(name, model, received, data_names, device, resized_spec(model, size), chosen)
    found.check(ImageCollator()(first_rows(images))["pixel_values"], classes)
    return found


def _loaded(network: str, classes: int | None, file: str | None) -> Any:
    try:
        return image_teacher(network, classes, file)
    except OSError as error:
        if file is not None or Path(network).is_dir():
            raise
        raise ValueError(
            f"there is no folder {network}, and no network of that name could be loaded from the Hub: correct the "
            "path, or the id (owner/name)"
        ) from error


def _checkpoints(args: NamedNetworks) -> list[str | None]:
    """The weights file of each student; None for a folder or a Hub id, which include weights."""
    bare = [name for name in args.students if is_architecture(name)]
    files = args.student_checkpoints or []
    if len(files) != len(bare):
        raise ValueError(
            f"there are {len(files)} student_checkpoints for {len(bare)} students that are timm names {bare}: "
            "pass one for each of these, in order; folders and Hub ids include weights"
        )
    remaining = iter(files)
    return [next(remaining) if is_architecture(name) else None for name in args.students]


def short_names(paths: Sequence[str]) -> list[str]:
    """The shortest unique endings of the paths. Raises ValueError for a path that is given twice."""
    parts = [[part for part in path.split("/") if part not in ("", ".")] for path in paths]
    twice = next((path for path, own in zip(paths, parts, strict=True) if parts.count(own) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice: pass each network once")
    longest = max(map(len, parts))
    tails = (["/".join(one[-count:]) for one in parts] for count in range(1, longest + 1))
    return next(names for names in tails if len(set(names)) == len(names))
