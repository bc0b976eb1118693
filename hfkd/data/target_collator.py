"""Wraps any collator of tokens: finds the targets on the CPU, and keeps documents and padding separate.

B rows, L length.
"""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfkd.utils.documents import positions_of, token_mask, token_positions, unmasked_positions
from hfkd.utils.targets import HostTargets

OTHER_INPUTS = {"pixel_values", "pixel_values_videos", "input_features", "input_values"}


@dataclass
class TargetCollator:
    """A collator, such as those of transformers and TRL, followed by `with_targets`."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, rows: list[Any]) -> Any:
        return with_targets(self.collate(rows))


def with_targets(batch: Any) -> Any:
    """Add `host_targets` to `batch` in place, if it has `labels`; does nothing if it has them, or no `input_ids`.

    The `attention_mask` [B, L] of packed rows is removed, because with it networks let documents attend to each other.
    `position_ids` are added for documents that are only separated by `cu_seq_lens_q` or `seq_idx` (as by
    DataCollatorWithFlattening), and for left-padded rows, whose padding GPT-2 would count.
    """
    ids, labels = batch.get("input_ids"), batch.get("labels")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or (isinstance(labels, Tensor) and labels.ndim != 2):
        return batch
    known, of = batch.get("host_targets"), ids if labels is None else labels
    if known is not None and known.shape == of.shape:
        return batch
    attended = token_mask(batch.get("attention_mask"), ids.shape)
    positions = token_positions(batch["position_ids"], ids.shape) if "position_ids" in batch else _found(batch, ids)
    known = HostTargets.of(of, positions, attended)
    if known.packed and positions is not None and attended is not None:
        del batch["attention_mask"]
        positions = unmasked_positions(positions, attended)
    if positions is not None:
        batch["position_ids"] = positions
    if labels is not None:
        batch["host_targets"] = known
    return batch


def _found(batch: MutableMapping[str, Any], ids: Tensor) -> Tensor | None:
    """Position ids [B, L] for a batch without any, if networks need them; otherwise None.

    None for batches with images or audio: their networks may have positions in several dimensions (Qwen-VL).
    """
    if not batch.keys().isdisjoint(OTHER_INPUTS):
        return None
    lengths, index, mask = (batch.get(name) for name in ("cu_seq_lens_q", "seq_idx", "attention_mask"))
    if lengths is not None and ids.shape[0] == 1:
        return positions_of(lengths.diff().long()).unsqueeze(0)
    if index is not None and index.shape == ids.shape:
        ends = (index[:, 1:] != index[:, :-1]).flatten().nonzero().flatten() + 1
        edges = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([ids.numel()])])
        return positions_of(edges.diff()).view(ids.shape) if ids.shape[0] == 1 else None
    attended = token_mask(mask, ids.shape)
    if attended is None or bool(attended[:, 0].all()):
        return None
    return (attended.cumsum(-1) - 1).clamp(min=0)
