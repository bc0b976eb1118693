"""Collation of rows of token ids to a padded batch. B rows, L longest length."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from hfkd.data.token_rows import TokenRow
from hfkd.utils.documents import unmasked_positions
from hfkd.utils.targets import IGNORED, HostTargets

logger = logging.getLogger(__name__)

MASKS = ("completion_mask", "assistant_masks")  # TRL's columns: 1 for tokens that are trained on


@dataclass
class TokenCollator:
    """Rows with `input_ids` -> `input_ids`, `attention_mask`, `position_ids`; `labels`, `index` if rows have them.

    All are [B, L] int64, and `index` [B]. With labels the batch also has `host_targets` (`HostTargets`), which must be
    recomputed or removed if the labels are changed. Rows are right-padded for training, left-padded for generation.
    Positions are explicit because GPT-2 would otherwise count padding. Padding is masked by length, not by id: if the
    end-of-sequence token is used for padding (the default for a tokenizer without pad token), a real one is still a
    target. `tokenizer`: a tokenizer, or the padding id.

    Rows may have `attention_mask`, `position_ids` and `seq_lengths` (`TokenRow`). If a row packs several documents (its
    positions restart), the batch has no attention_mask, because networks only separate documents by positions without
    one. Other columns are left out. With a `completion_mask` or `assistant_masks`, the tokens where it is 1 become
    labels, as in TRL; with `labels_from_tokens`, other rows without labels get all their tokens as labels, also those
    of a concatenated dataset, of which only other rows have labels. refused:
    columns that rows must not have, with the error message.
    """

    tokenizer: PreTrainedTokenizerBase | int | None
    padding_side: Literal["right", "left"] = "right"
    pad_to_multiple_of: int | None = None
    labels_from_tokens: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.padding_side not in ("right", "left"):
            raise ValueError(f"unknown padding_side {self.padding_side!r}: pass one of ['right', 'left']")
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of={self.pad_to_multiple_of} must be 1 or more tokens, or None")
        if isinstance(self.tokenizer, int):
            # Trainer saves a collator's attribute `tokenizer`.
            self.pad_token_id, self.tokenizer = self.tokenizer, None
        else:
            assert self.tokenizer is not None
            self.pad_token_id = padding_id(self.tokenizer)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        for name, why in self.refused.items():
            if any(_given(row.get(name)) for row in rows):
                raise ValueError(why)
        rows = [with_labels(row, self.labels_from_tokens) for row in rows]
        made = [TokenRow.of(row) for row in rows]
        masks = [torch.ones_like(row.ids) if row.attended is None else row.attended.long() for row in made]
        batch: dict[str, Any] = {
            "input_ids": self._pad([row.ids for row in made], self.pad_token_id),
            "attention_mask": self._pad(masks, 0),
            "position_ids": self._pad([row.positions for row in made], 0),
        }
        if any(row.labels is not None for row in made):
            batch["labels"] = self._pad(_labels(made), IGNORED)
            positions = batch["position_ids"] if any(row.packed for row in made) else None
            batch["host_targets"] = HostTargets.of(batch["labels"], positions, batch["attention_mask"])
        if any(row.packed for row in made):
            attended = batch.pop("attention_mask").bool()
            batch["position_ids"] = unmasked_positions(batch["position_ids"], attended)
        if all(row.get("index") is not None for row in rows):
            batch["index"] = torch.tensor([row["index"] for row in rows])  # [B]
        return batch

    def _pad(self, rows: list[Any], value: int) -> Tensor:
        padded = pad_sequence(rows, batch_first=True, padding_value=value, padding_side=self.padding_side)  # [B, L]
        extra = -padded.shape[1] % (self.pad_to_multiple_of or 1)
        return pad(padded, (extra, 0) if self.padding_side == "left" else (0, extra), value=value)


def _labels(rows: Sequence[TokenRow]) -> list[Tensor]:
    """The labels of each row. Raises ValueError for a row without labels, as in datasets that were concatenated."""
    for number, row in enumerate(rows):
        if row.labels is None:
            raise ValueError(
                f"row {number} of a batch has no labels, and others have: tokenise all rows by "
                "tokenize_dataset, or pass TokenCollator(labels_from_tokens=True), which labels all of its tokens"
            )
    return [row.labels for row in rows if row.labels is not None]


def with_labels(row: Mapping[str, Any], every_token: bool) -> Mapping[str, Any]:
    """`row` with labels from its tokens, if it has none."""
    masked = any(row.get(name) is not None for name in MASKS)
    if row.get("labels") is not None or "input_ids" not in row or not (masked or every_token):
        return row
    labels = torch.tensor([int(token) for token in row["input_ids"]])
    for name in MASKS:
        if row.get(name) is not None:
            mask = torch.tensor([int(one) for one in row[name]])
            if mask.shape != labels.shape:
                raise ValueError(
                    f"{name} has {len(mask)} values for a row of {len(labels)} tokens: pass one for each token"
                )
            labels = labels.masked_fill(mask == 0, IGNORED)
    return {**row, "labels": labels}


def _given(value: Any) -> bool:
    """Whether a row has a value in a column, which may be empty for it."""
    return value is not None and not (isinstance(value, (list, tuple)) and not value)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's pad token, or its end of sequence (which is logged). Raises ValueError if it has neither."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has neither pad_token nor eos_token: set tokenizer.pad_token")
    logger.info("The tokenizer has no pad token: padding with the end of sequence, %r.", tokenizer.eos_token)
    return tokenizer.eos_token_id
