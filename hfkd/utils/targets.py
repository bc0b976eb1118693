"""Which positions of a batch are learned: those that a label names, a causal model's from the position before.

N target tokens, B rows, L length, S samples: the rows, or where rows pack several documents the documents.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfkd.utils.devices import OnHost, send
from hfkd.utils.documents import IGNORED, begins, target_mask, token_mask, token_positions

__all__ = ["IGNORED", "HostTargets", "Targets", "count_token_items"]


@dataclass(frozen=True)
class HostTargets(OnHost):
    """The `Targets` of a batch, found before its labels [B, L] left the host: position [N], into B * L.

    How many they are decides the shape of all that follows, and to ask a GPU is to wait for it. Found on one, they are
    there. document: where rows pack several documents, the one that each target is in [N], below `num_documents`.
    """

    position: Tensor
    shape: torch.Size
    document: Tensor | None = None
    num_documents: int = 0
    shift: int = 1  # how far each label stands behind the position that predicts it

    @classmethod
    def in_place(cls, labels: Tensor) -> "HostTargets":
        """Those of a network that predicts each label at its own position."""
        if labels.ndim != 2:
            raise ValueError(f"labels of shape {tuple(labels.shape)}: tokens need [batch, length], one label a token")
        return cls((labels != IGNORED).flatten().nonzero().squeeze(-1), labels.shape, shift=0)

    @classmethod
    def of(cls, labels: Tensor, position_ids: Any = None, attention_mask: Any = None) -> "HostTargets":
        if labels.ndim != 2:
            raise ValueError(f"labels of shape {tuple(labels.shape)}: tokens need [batch, length], one label a token")
        positions, attended = token_positions(position_ids, labels.shape), token_mask(attention_mask, labels.shape)
        begin = None if positions is None else begins(positions, attended)
        wanted = target_mask(labels, attended, begin)
        position = wanted.flatten().nonzero().squeeze(-1)
        if begin is not None:
            begin = begin & (wanted.flip(-1).cumsum(-1).flip(-1) > 0)  # padding after the last target is no document
        if begin is None or not bool((begin.sum(-1) > 1).any()):
            return cls(position, labels.shape)
        begin[:, 0] = True  # no document has tokens of two rows
        number = begin.flatten().cumsum(0) - 1
        return cls(position, labels.shape, number[position], int(number[-1]) + 1)

    @property
    def packed(self) -> bool:
        """Whether a row holds more than one document."""
        return self.document is not None


class Targets:
    """Which positions of [B, L] logits predict a label: that label, its sample and its row, [N] each."""

    def __init__(self, labels: Tensor, host_targets: HostTargets | None = None, shift: int = 1, **others: Any) -> None:
        """`others`: the batch's `position_ids` and `attention_mask`, which count where the targets are not known."""
        self.shape, known = labels.shape, host_targets
        # Not known, or known of another task, or the batch was cut in parts on its way.
        if known is None or known.shape != labels.shape or known.shift != shift:
            known = HostTargets.of(labels, **others) if shift else HostTargets.in_place(labels)
        self.position = send(known.position, labels.device)
        self._known = known
        self.labels = labels.flatten()[self.position + shift]
        self.row = self.position // max(labels.shape[1], 1)
        self.sample = self.row if known.document is None else send(known.document, labels.device)
        self.num_samples = known.num_documents if known.packed else labels.shape[0]

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> "Targets":
        """Those of a batch."""
        others: dict[str, Any] = {name: inputs.get(name) for name in ("position_ids", "attention_mask")}
        return cls(inputs["labels"], inputs.get("host_targets"), **others)

    def __len__(self) -> int:
        return len(self.position)

    @property
    def on_host(self) -> Tensor:
        """`position` where the host reads it; waits for the device where the batch came without host targets."""
        return self._known.position.cpu()

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """How many targets each sample has; None where it would take a wait for the device to know."""
        known = self._known
        if known.position.device.type != "cpu":
            return None
        sample = known.position // max(self.shape[1], 1) if known.document is None else known.document
        return tuple(torch.bincount(sample, minlength=self.num_samples).tolist())

    @property
    def samples_with_items(self) -> Tensor:
        """How many samples have a target: a number on the labels' device, nothing is read back."""
        found = torch.zeros(self.num_samples, device=self.sample.device)
        return found.index_fill(0, self.sample, 1.0).sum()

    def pick(self, values: Tensor) -> Tensor:
        """[B, L, ...] -> [N, ...]"""
        if values.shape[:2] != self.shape:
            raise ValueError(
                f"a tensor of shape {tuple(values.shape)} for labels of shape {tuple(self.shape)}: batch and length "
                "must agree; a model that returns only some positions needs logits_to_keep=0"
            )
        return values.flatten(0, 1).index_select(0, self.position)


def count_token_items(
    labels: Tensor,
    host_targets: HostTargets | None = None,
    position_ids: Any = None,
    attention_mask: Any = None,
    shift: int = 1,
) -> Tensor:
    """How many targets a batch has: a number on its device, nothing is read back."""
    if host_targets is not None and host_targets.shape == labels.shape and host_targets.shift == shift:
        return torch.full((), len(host_targets.position), device=labels.device)
    if not shift:
        return (labels != IGNORED).sum()
    positions, attended = token_positions(position_ids, labels.shape), token_mask(attention_mask, labels.shape)
    return target_mask(labels, attended, None if positions is None else begins(positions, attended)).sum()
