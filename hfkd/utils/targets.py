"""The target positions of a batch: those that predict a label, for causal models the positions before the labels.

N target tokens, B rows, L length, S samples: the rows, or the documents of packed rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfkd.utils.devices import OnHost, send
from hfkd.utils.documents import IGNORED, begins, target_mask, token_mask, token_positions

__all__ = ["IGNORED", "HostTargets", "Targets", "count_token_items"]


@dataclass(frozen=True)
class HostTargets(OnHost):
    """The `Targets` of a batch, computed on the CPU from its labels [B, L]: position [N], as indices into B * L.

    Their number determines the shapes of all that follows, and computing it on a GPU would need a synchronisation. If
    the labels are on a GPU, so are the targets. document: in packed rows, the document of each target [N], below
    `num_documents`.
    """

    position: Tensor
    shape: torch.Size
    document: Tensor | None = None
    num_documents: int = 0
    shift: int = 1  # the distance from a position to the label that it predicts

    @classmethod
    def in_place(cls, labels: Tensor) -> "HostTargets":
        """The targets of a network that predicts each label at its own position."""
        if labels.ndim != 2:
            raise ValueError(f"labels of shape {tuple(labels.shape)}: tokens need [batch, length], one label per token")
        return cls((labels != IGNORED).flatten().nonzero().squeeze(-1), labels.shape, shift=0)

    @classmethod
    def of(cls, labels: Tensor, position_ids: Any = None, attention_mask: Any = None) -> "HostTargets":
        if labels.ndim != 2:
            raise ValueError(f"labels of shape {tuple(labels.shape)}: tokens need [batch, length], one label per token")
        wanted, begin = _wanted(labels, position_ids, attention_mask)
        position = wanted.flatten().nonzero().squeeze(-1)
        if begin is not None:
            begin = begin & (wanted.flip(-1).cumsum(-1).flip(-1) > 0)  # padding after the last target is not a document
        if begin is None or not bool((begin.sum(-1) > 1).any()):
            return cls(position, labels.shape)
        begin[:, 0] = True  # documents do not span rows
        number = begin.flatten().cumsum(0) - 1
        return cls(position, labels.shape, number[position], int(number[-1]) + 1)

    @property
    def packed(self) -> bool:
        """Whether a row holds more than one document."""
        return self.document is not None


class Targets:
    """The positions of [B, L] logits that predict a label, with the label, its sample and its row, [N] each."""

    def __init__(self, labels: Tensor, host_targets: HostTargets | None = None, shift: int = 1, **others: Any) -> None:
        """`others`: the batch's `position_ids` and `attention_mask`, which are used without valid `host_targets`."""
        self.shape, known = labels.shape, host_targets
        # There are none, or they are for another task, or the batch has been split.
        if known is None or known.shape != labels.shape or known.shift != shift:
            known = HostTargets.of(labels, **others) if shift else HostTargets.in_place(labels)
        self.position = send(known.position, labels.device)
        self._known, self._of_all = known, labels
        self.labels = labels.flatten()[self.position + shift]
        self.row = self.position // max(labels.shape[1], 1)
        self.sample = self.row if known.document is None else send(known.document, labels.device)
        self.num_samples = known.num_documents if known.packed else labels.shape[0]

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> "Targets":
        """The targets of a batch."""
        others: dict[str, Any] = {name: inputs.get(name) for name in ("position_ids", "attention_mask")}
        return cls(inputs["labels"], inputs.get("host_targets"), **others)

    def __len__(self) -> int:
        return len(self.position)

    @property
    def on_host(self) -> Tensor:
        """`position` on the CPU; synchronises with the device if the batch has no host targets."""
        return self._known.position.cpu()

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """The number of targets of each sample; None if this would need a synchronisation."""
        known = self._known
        if known.position.device.type != "cpu":
            return None
        sample = known.position // max(self.shape[1], 1) if known.document is None else known.document
        return tuple(torch.bincount(sample, minlength=self.num_samples).tolist())

    @property
    def samples_with_items(self) -> Tensor:
        """The number of samples with a target, on the labels' device, without a synchronisation."""
        found = torch.zeros(self.num_samples, device=self.sample.device)
        return found.index_fill(0, self.sample, 1.0).sum()

    def of_rows(self, rows: Sequence[int]) -> tuple["Targets", Tensor]:
        """The targets of a batch of these rows alone, and which of the N targets they are, [M]."""
        length, position, device = max(self.shape[1], 1), self.on_host, self.labels.device
        number = torch.full((self.shape[0],), -1)  # of each row in that batch
        number[list(rows)] = torch.arange(len(rows))
        row = number[position // length]
        which = (row >= 0).nonzero().squeeze(-1)
        there = row[which] * length + position[which] % length
        known = HostTargets(there, torch.Size([len(rows), self.shape[1]]), shift=self._known.shift)
        labels = self._of_all[torch.tensor(list(rows), device=device)]
        return Targets(labels, known, known.shift), send(which, device)

    def pick(self, values: Tensor) -> Tensor:
        """[B, L, ...] -> [N, ...]"""
        if values.shape[:2] != self.shape:
            raise ValueError(
                f"a tensor of shape {tuple(values.shape)} does not fit labels of shape {tuple(self.shape)}: batch and "
                "length must be equal; for a model that returns some positions only, set logits_to_keep=0"
            )
        return values.flatten(0, 1).index_select(0, self.position)


def count_token_items(
    labels: Tensor,
    host_targets: HostTargets | None = None,
    position_ids: Any = None,
    attention_mask: Any = None,
    shift: int = 1,
) -> Tensor:
    """The number of targets of a batch, on its device, without a synchronisation."""
    if host_targets is not None and host_targets.shape == labels.shape and host_targets.shift == shift:
        return torch.full((), len(host_targets.position), device=labels.device)
    if not shift:
        return (labels != IGNORED).sum()
    return _wanted(labels, position_ids, attention_mask)[0].sum()


def _wanted(labels: Tensor, position_ids: Any, attention_mask: Any) -> tuple[Tensor, Tensor | None]:
    """[B, L] bool both: which positions predict a label, and where documents begin, if positions say so."""
    positions, attended = token_positions(position_ids, labels.shape), token_mask(attention_mask, labels.shape)
    begin = None if positions is None else begins(positions, attended)
    return target_mask(labels, attended, begin), begin
