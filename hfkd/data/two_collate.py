"""Collation of rows of two tokenizers: the student's tokens, the teacher's tokens, and their groups.

B rows, L longest length of the student's tokens, K of the teacher's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hfkd.data.teacher_columns import TEACHER, teachers_batch
from hfkd.data.text_collate import TokenCollator, with_labels
from hfkd.data.two_rows import COLUMNS, REMEDY, Spelled, check_row, check_spelling
from hfkd.utils.targets import IGNORED, HostTargets
from hfkd.utils.token_groups import UNGROUPED, Groups, Pairing

NO_TOKENS = (
    "the teacher has another tokenizer than the student: pass texts (prompt and completion, text, ...) and both "
    f"tokenizers to the trainer, or {REMEDY}"
)


@dataclass
class TwoTokenCollator(TokenCollator):
    """`TokenCollator` for rows of `hfkd.data.two_tokenizers.tokenize_for_both`.

    The batch has the student's entries as from `TokenCollator`; the teacher's under the same names with the prefix
    `teacher_` [B, K]; `token_groups` [B, L] and `teacher_token_groups` [B, K], the group of each token in its row; and
    `groups`, computed from these on the CPU. Rows with the student's tokens only give the student's batch.
    spelled: the bytes of each token id of student and teacher, with which rows are checked. unread: columns that a
    network would read, but that are not part of such a batch. Raises the ValueErrors of `check_row` and
    `check_spelling`.
    """

    teacher: TokenCollator = field(default_factory=lambda: TokenCollator(0))
    pairing: Pairing = field(default_factory=Pairing)
    spelled: Spelled | None = None
    unread: frozenset[str] = frozenset()

    @classmethod
    def around(cls, own: TokenCollator, teacher_pad: Any, pairing: Pairing, **more: Any) -> "TwoTokenCollator":
        """A collator with the settings of `own`, also for the teacher's tokens."""
        settings = own.padding_side, own.pad_to_multiple_of, own.labels_from_tokens
        pad = own.pad_token_id if own.tokenizer is None else own.tokenizer
        return cls(pad, *settings, teacher=TokenCollator(teacher_pad, *settings[:2]), pairing=pairing, **more)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        # In rows of two tokenizers, labels on the prompt would be paired with the teacher's response.
        rows = [with_labels(row, self.labels_from_tokens and COLUMNS[0] not in row) for row in rows]
        for number, row in enumerate(rows):
            check_row(number, row, self.unread)
            if self.spelled is not None and COLUMNS[0] in row:
                check_spelling(number, row, self.spelled)
        batch = super().__call__(rows)
        if any(COLUMNS[0] not in row for row in rows):
            return batch
        its = self.teacher([{"input_ids": r[COLUMNS[0]], "labels": r[COLUMNS[1]]} for r in rows])
        grouped = [self._groups(row) for row in rows]
        ours, theirs = ([torch.tensor(side) for side in sides] for sides in zip(*grouped, strict=True))
        both = self._pad(ours, UNGROUPED), self.teacher._pad(theirs, UNGROUPED)
        batch |= {TEACHER + name: value for name, value in its.items()}
        batch |= {"token_groups": both[0], f"{TEACHER}token_groups": both[1]}
        return batch | {"groups": Groups.of((batch["host_targets"], both[0]), (its["host_targets"], both[1]))}

    def _groups(self, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        sides = ("labels", "byte_ends"), (COLUMNS[1], COLUMNS[3])
        learned = tuple([int(label) != IGNORED for label in row[labels]] for labels, _ in sides)
        ends = tuple([int(end) for end in row[places]] for _, places in sides)
        return self.pairing.of((ends[0], ends[1]), (learned[0], learned[1]), int(row["response_bytes"]))


def groups_of(batch: Mapping[str, Any]) -> Groups:
    """The groups from the collator, recomputed if the batch has been split."""
    known, labels, its = batch.get("groups"), batch["labels"], teachers_batch(batch, NO_TOKENS)["labels"]
    if isinstance(known, Groups) and known.shapes == (labels.shape, its.shape):
        return known
    sides = []
    for prefix in ("", TEACHER):
        label, numbers = batch[f"{prefix}labels"].cpu(), batch[f"{prefix}token_groups"].cpu()
        mask = batch.get(f"{prefix}attention_mask")
        sides.append((HostTargets.of(label, None, None if mask is None else mask.cpu()), numbers))
    return Groups.of(*sides)
