"""Which tokens of a batch are learned: those that a label names.

N target tokens, B rows, L length.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfkd.devices import OnHost, send

IGNORED = -100  # the label Hugging Face models skip


@dataclass(frozen=True)
class HostTargets(OnHost):
    """The `Targets` of a batch, found before its labels [B, L] left the host: position [N], into B * L.

    How many they are decides the shape of all that follows, and to ask a GPU is to wait for it. Found on one, they are
    there.
    """

    position: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, labels: Tensor) -> "HostTargets":
        return cls(_target_positions(labels), labels.shape)


class Targets:
    """Which positions of [B, L] labels predict a token, and that token's label and sample."""

    def __init__(self, labels: Tensor, known: HostTargets | None = None) -> None:
        if labels.ndim != 2:
            raise ValueError(f"labels of shape {tuple(labels.shape)}: tokens need [batch, length], one label a token")
        self.shape = labels.shape
        if known is None or known.shape != labels.shape:  # not known, or the batch was cut in parts on its way
            known = HostTargets.of(labels)
        self.position = send(known.position, labels.device)
        self._known = known
        self.labels = labels.flatten()[self.position + 1]
        self.sample = self.position // max(labels.shape[1], 1)

    def __len__(self) -> int:
        return len(self.position)

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """How many targets each sample has; None where it would take a wait for the device to know."""
        position, (rows, length) = self._known.position, self.shape
        if position.device.type != "cpu":
            return None
        return tuple(torch.bincount(position // max(length, 1), minlength=rows).tolist())

    def pick(self, values: Tensor) -> Tensor:
        """[B, L, ...] -> [N, ...]"""
        if values.shape[:2] != self.shape:
            raise ValueError(
                f"a tensor of shape {tuple(values.shape)} for labels of shape {tuple(self.shape)}: batch and length "
                "must agree; a model that returns only some positions needs logits_to_keep=0"
            )
        return values.flatten(0, 1).index_select(0, self.position)


def _target_positions(labels: Tensor) -> Tensor:
    """[B, L] -> [N], into B * L: those whose next label is a token."""
    wanted = torch.zeros_like(labels, dtype=torch.bool)
    wanted[:, :-1] = labels[:, 1:] != IGNORED
    return wanted.flatten().nonzero().squeeze(-1)
