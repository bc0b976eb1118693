"""Checks of teachers of which each row names its own."""

import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from hfkd.arguments import DistillationArguments
from hfkd.data.first_rows import first_rows, sets_by_name
from hfkd.data.teacher_columns import ROW_TEACHER
from hfkd.losses.distillation import DistillationLoss
from hfkd.tasks.base import Task
from hfkd.teachers import TeacherByRow
from hfkd.teachers.by_row import number_of
from hfkd.utils.messages import some

logger = logging.getLogger(__name__)


def check_row_teachers(
    teacher: TeacherByRow,
    args: DistillationArguments,
    loss: DistillationLoss,
    task: Task,
    datasets: Mapping[str, Any],
) -> None:
    """Raise ValueError for rows that name no teacher of these, and for settings that mix rows or share networks.

    Rows of evaluation sets need none, unless the teacher is compared there (`evaluate_kl`). Warns of a teacher that no
    training row names.
    """
    for why, (wanted, remedy) in {
        "he_da mixes the images of rows that may have different teachers": (
            args.he_da != "none",
            "leave it out",
        ),
        "shard_teacher lets all processes run each network together, and their rows have other teachers": (
            args.shard_teacher,
            "leave it out, so that each process has the whole teachers",
        ),
        "the teacher classifies the proposals that the student makes of all images together": (
            task.follows_student,
            "pass one teacher",
        ),
        "the rows have prompts of the teacher's own": (task.own_rows, "pass one teacher"),
    }.items():
        if wanted:
            raise ValueError(f"a teacher for each row ({some(map(str, teacher.names))}), but {why}: {remedy}")
    if not loss.kd_weight and not args.evaluate_kl:
        return
    for name, rows in datasets.items():
        training = name == "train_dataset"
        for part, its in sets_by_name(rows, name).items():
            if training or args.evaluate_kl:
                _check_rows(teacher, part, its, said=training)


def _check_rows(teacher: TeacherByRow, name: str, rows: Any, said: bool) -> None:
    """Of a `datasets.Dataset` all rows are looked at, of other rows the first."""
    first = [row for row in first_rows(rows) if isinstance(row, Mapping)]
    if first and any(row.get(ROW_TEACHER) is None for row in first):
        raise ValueError(
            f"the rows of {name} have the columns {some(sorted(first[0]))}, and no {ROW_TEACHER!r} that names one of "
            f"the teachers {list(teacher.names)}: add it (and let a transform keep it)"
        )
    if not isinstance(rows, Dataset) or ROW_TEACHER not in rows.column_names:
        return
    named = rows.with_format(None).unique(ROW_TEACHER)
    for one in named:
        number_of(one, teacher.names)
    if said and (unused := [one for one in teacher.names if one not in named]):
        logger.warning(
            "No row of %s names %s in its column %r: %s not run.",
            name,
            " or ".join(repr(one) for one in unused),
            ROW_TEACHER,
            "this teacher does" if len(unused) == 1 else "these teachers do",
        )
