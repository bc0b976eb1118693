"""Rows of token ids, with optional positions, mask and packing. L tokens in a row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfkd.utils.documents import IGNORED, begins, positions_of, within_padding

PACKING = ("position_ids", "seq_lengths")  # columns that define where the documents of a row begin
OWN_COLUMNS = (*PACKING, "attention_mask")


@dataclass(frozen=True)
class TokenRow:
    """One row, [L] each. `attended`: None if there is no padding. `packed`: the row has several documents."""

    ids: Tensor
    positions: Tensor
    attended: Tensor | None = None
    labels: Tensor | None = None
    packed: bool = False

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "TokenRow":
        """Read a row of a dataset, with padding moved from its start to its end, where it has no effect on networks.

        Positions are the row's `position_ids`; or they restart with each of `seq_lengths` (as in TRL's packing); or
        they count the tokens in its `attention_mask`. Padding has no labels. Raises ValueError for columns that do not
        have one value per token.
        """
        if "input_ids" not in row:
            raise ValueError(
                f"the dataset's rows have no 'input_ids' but {sorted(row)}: tokenise them with "
                "hfkd.data.text.tokenize_dataset, which accepts text, prompt and completion, instructions and "
                "messages"
            )
        ids = _whole_numbers(row["input_ids"])
        labels = None if row.get("labels") is None else _whole_numbers(row["labels"])
        if labels is not None and labels.shape != ids.shape:
            raise ValueError(
                f"labels of shape {list(labels.shape)} for input_ids of shape {list(ids.shape)}: pass one label for "
                "each token"
            )
        attended = _attended(row, ids)
        positions = _positions(row, ids, attended)
        if attended is not None:
            padding = ~within_padding(attended[None])[0]
            labels = None if labels is None else labels.masked_fill(padding, IGNORED)
            start = int(attended.nonzero()[0])
            ids, attended, positions = (x.roll(-start) for x in (ids, attended, positions.masked_fill(padding, 0)))
            labels = None if labels is None else labels.roll(-start)
        own = any(row.get(name) is not None for name in PACKING)
        packed = own and int(begins(positions[None], None if attended is None else attended[None]).sum()) > 1
        return cls(ids, positions, attended, labels, packed)


def _whole_numbers(values: Any) -> Tensor:
    return torch.as_tensor(values if isinstance(values, Tensor) else list(values), dtype=torch.long)


def _attended(row: Mapping[str, Any], ids: Tensor) -> Tensor | None:
    if row.get("attention_mask") is None:
        return None
    mask = torch.as_tensor(row["attention_mask"])
    if mask.shape != ids.shape or not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"the attention_mask of shape {list(mask.shape)} for {len(ids)} tokens must be 1 for each token, and 0 "
            "for padding; separate the documents of a row by position_ids that restart"
        )
    if not bool(mask.any()):
        raise ValueError("the attention_mask of a row is 0 for all tokens: remove the row")
    return mask.bool()


def _positions(row: Mapping[str, Any], ids: Tensor, attended: Tensor | None) -> Tensor:
    for name, read in (("position_ids", _whole_numbers), ("seq_lengths", lambda v: positions_of(_whole_numbers(v)))):
        if row.get(name) is not None:
            positions = read(row[name])
            if positions.shape != ids.shape:
                raise ValueError(
                    f"{name} of shape {list(positions.shape)} for a row of {len(ids)} tokens: pass one position for "
                    "each token"
                )
            return positions
    return torch.arange(len(ids)) if attended is None else (attended.cumsum(0) - 1).clamp(min=0)
