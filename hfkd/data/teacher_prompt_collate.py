"""Collation of rows whose teacher reads a prompt of its own.

B rows, L longest length of the student's tokens, K of the teacher's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hfkd.data.teacher_columns import SOME_ROWS, TEACHER, TEACHER_IDS, TEACHER_LABELS
from hfkd.data.text_collate import TokenCollator
from hfkd.data.token_rows import OWN_COLUMNS
from hfkd.utils.targets import Targets


@dataclass
class TeacherPromptCollator(TokenCollator):
    """`TokenCollator` for rows with `teacher_input_ids` and `teacher_labels`, as `tokenize_dataset` makes them.

    The batch has the student's entries as from `TokenCollator`, and the teacher's under the same names with the prefix
    `teacher_` [B, K]; rows may have the other columns of a `TokenRow` with the prefix. The k-th token with a label is
    the same in both. Rows without the teacher's columns give the student's batch. Raises ValueError for other labels or
    tokens, columns of some rows only, and packed rows.
    """

    teacher: TokenCollator = field(default_factory=lambda: TokenCollator(0))

    @classmethod
    def around(cls, own: TokenCollator) -> "TeacherPromptCollator":
        """A collator with the settings of `own`, also for the teacher's tokens."""
        pad = own.pad_token_id if own.tokenizer is None else own.tokenizer
        sides: dict[str, Any] = {"padding_side": own.padding_side, "pad_to_multiple_of": own.pad_to_multiple_of}
        its = TokenCollator(pad, **sides)
        return cls(pad, **sides, labels_from_tokens=own.labels_from_tokens, refused=own.refused, teacher=its)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(rows)
        given = [row for row in rows if row.get(TEACHER_IDS) is not None]
        if not given:
            return batch
        if len(given) < len(rows) or any(row.get(TEACHER_LABELS) is None for row in rows):
            raise ValueError(SOME_ROWS)
        if "labels" not in batch:
            raise ValueError(f"the rows have {TEACHER_LABELS} and no labels: give them labels, -100 for the prompt")
        its = self.teacher([_of_teacher(row) for row in rows])
        if batch["host_targets"].packed or its["host_targets"].packed:
            raise ValueError(
                f"the rows pack several documents, and {TEACHER_IDS} are those of one: put each into a row of its own"
            )
        sides = Targets.of(batch), Targets.of(its)
        _refuse_other_responses(*sides, batch.get("index"))
        _refuse_moved_labels(batch, its, sides)
        return batch | {TEACHER + name: value for name, value in its.items()}


def _of_teacher(row: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher's columns of a row, which may be padded already, without the prefix."""
    names = ("input_ids", "labels", *OWN_COLUMNS)
    return {name: row[TEACHER + name] for name in names if row.get(TEACHER + name) is not None}


def _refuse_other_responses(student: Targets, teacher: Targets, index: Tensor | None) -> None:
    """Raise ValueError for a row whose targets are not the same tokens for the student and the teacher."""
    if torch.equal(student.row, teacher.row) and torch.equal(student.labels, teacher.labels):
        return
    for number in range(student.shape[0]):
        mine, its = (one.labels[one.row == number].tolist() for one in (student, teacher))
        if mine != its:
            same = next(k for k in range(len(mine) + 1) if mine[: k + 1] != its[: k + 1])
            raise ValueError(
                f"row {number if index is None else int(index[number])} has {len(mine)} target tokens in labels and "
                f"{len(its)} in {TEACHER_LABELS}, of which the first {same} are the same, and then follow "
                f"{mine[same : same + 3]} and {its[same : same + 3]}: the teacher must read the same response after "
                "its own prompt. Label the same tokens in both, none of them the first of its row, or tokenise texts "
                "with a column teacher_prompt; for a teacher with another tokenizer pass teacher_processing_class"
            )


def _refuse_moved_labels(batch: Mapping[str, Any], its: Mapping[str, Any], sides: tuple[Targets, Targets]) -> None:
    """Raise ValueError unless both networks read the same tokens at their targets: `teacher_labels` may be moved."""
    read = [one["input_ids"].flatten()[at.position + 1] for one, at in zip((batch, its), sides, strict=True)]
    other = (read[0] != read[1]).nonzero().flatten().tolist()
    if other:
        (label, mine, theirs), index = (int(one[other[0]]) for one in (sides[0].labels, *read)), batch.get("index")
        row = int(sides[0].row[other[0]])
        raise ValueError(
            f"row {row if index is None else int(index[row])} has the target token {label}, at whose place input_ids "
            f"have {mine} and {TEACHER_IDS} {theirs}: label the tokens of the response, at their own positions in "
            f"labels and in {TEACHER_LABELS}"
        )
