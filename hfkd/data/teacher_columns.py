"""The columns of a teacher that reads other tokens than the student: of its own tokenizer, or prompt."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from hfkd.data.first_rows import first_rows

TEACHER = "teacher_"  # prefix of the teacher's columns
TEACHER_PROMPT = "teacher_prompt"  # a text, or turns of a chat, that the teacher reads in place of the prompt
TEACHER_IDS, TEACHER_LABELS = f"{TEACHER}input_ids", f"{TEACHER}labels"
TEACHER_LENGTH = f"{TEACHER}length"
ROW_TEACHER = "teacher"  # the name of the row's own teacher, of several (hfkd.teachers.TeacherByRow)
WHICH_TEACHER = "which_teacher"  # its number, in a batch

SOME_ROWS = (
    f"some rows have no {TEACHER_IDS} or no {TEACHER_LABELS}, and others do: give each row both; where the teacher "
    "reads what the student does, its input_ids and labels"
)


def teachers_batch(batch: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """The teacher's part of the batch, without the prefix. Raises ValueError, with the `remedy`, if there is none."""
    if TEACHER_IDS not in batch:
        raise ValueError(f"the rows have no {TEACHER_IDS}, but {remedy}")
    return {name.removeprefix(TEACHER): value for name, value in batch.items() if name.startswith(TEACHER)}


def columns_of(rows: Any) -> set[str]:
    """The columns of a dataset that are known without reading it: by its `column_names`, or from its first rows."""
    named = getattr(rows, "column_names", None) or ()
    return {*named, *(name for row in first_rows(rows) if isinstance(row, Mapping) for name in row)}


def refuse_some(rows: Any) -> None:
    """Raise ValueError for a dataset whose rows have the teacher's tokens in part, as two that were concatenated."""
    if not isinstance(rows, Dataset) or TEACHER_IDS not in rows.column_names:
        return
    if rows.data.column(TEACHER_IDS).null_count:  # of all rows, before a selection
        none = rows.select_columns(TEACHER_IDS).with_format("arrow")[:].column(0).null_count
        if 0 < none < len(rows):
            raise ValueError(SOME_ROWS)
