"""Distillation through teacher assistants: each network of a chain teaches the next, smaller one."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hfkd.arguments import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.experiments.resume import deciding, distil_and_keep, finished
from hfkd.models import NetworkArguments

logger = logging.getLogger(__name__)


def distil_chain(
    chain: Sequence[str],
    checkpoint: str | None,
    data: ImageDataArguments,
    args: DistillationArguments,
    page: bool = True,
) -> list[Path]:
    """TAKD (Mirzadeh et al., AAAI 2020): a teacher, assistants of sizes in between, and the student, in this order.

    Each network after the first is distilled from the one before it, in a separate run in `args.output_dir/1_NAME`,
    `2_NAME`, ...; the last is the student. A repeated call keeps finished stages and resumes an interrupted one.
    `checkpoint` has the weights of the first network. With `push_to_hub` the student is uploaded, and no assistant.
    Returns the folders.
    """
    if len(chain) < 2:
        raise ValueError(f"chain={list(chain)} must list a teacher, assistants, and the student, largest first")
    folders: list[Path] = []
    teacher, weights = chain[0], None if checkpoint is None else [checkpoint]
    for stage, student in enumerate(chain[1:], start=1):
        folder = Path(args.output_dir or ".") / f"{stage}_{Path(student).name}"
        networks = NetworkArguments([teacher], weights, student)
        last = stage == len(chain) - 1
        stage_args = replace(args, output_dir=str(folder), push_to_hub=args.push_to_hub and last)
        if finished(folder, deciding(networks, data, stage_args)) is None:
            logger.info("Stage %d of %d: %s teaches %s", stage, len(chain) - 1, teacher, student)
            distil_and_keep(networks, data, stage_args, page, assistants=chain[1:stage])
        folders.append(folder)
        teacher, weights = str(folder), None
    return folders
