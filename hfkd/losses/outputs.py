"""Outputs: the logits and inner features of one network for the items of a batch.

N items, B batch rows, C classes or vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hfkd.losses import functional
from hfkd.utils.attention import Attention
from hfkd.utils.feature_keys import Layer, feature_key


class Features(dict[str, Any]):
    """A network's inner features by key: Tensors [B, ...] of the rows (or views) of the batch, or `Attention`.

    Integers are keys too. Raises ValueError for a missing key, so that no term is silently 0.
    """

    def __missing__(self, layer: Layer) -> Any:
        key = feature_key(layer)
        if key in self:
            return self[key]
        raise ValueError(
            f"layer {key!r} was not captured, only {sorted(self) or 'none'}: an objective must name the layers that "
            "it reads in requirements()"
        )

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Features":
        return Features({key: _mapped(value, change) for key, value in self.items()})


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Attention):
        return Attention(*(_mapped(part, change) for part in value))
    return change(value) if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class Outputs:
    """One network's outputs: logits [N, C], and the captured inner features by key in `kept`."""

    logits: Tensor
    kept: Mapping[Any, Any] | None = None  # not an empty mapping, which a loss captured as a graph could not create

    @property
    def features(self) -> Features:
        """The captured features. Raises ValueError for any other key."""
        return Features({feature_key(k): v for k, v in (self.kept or {}).items()})

    def energy(self, temperature: float) -> Tensor:
        """The energy of each item [N], also for a chunked loss, which does not provide logits."""
        return functional.energy(self.logits, temperature)

    def entropy(self, temperature: float) -> Tensor:
        """`functional.entropy` of each item [N]."""
        return functional.entropy(self.logits, temperature)

    @property
    def num_classes(self) -> int:
        return self.logits.shape[-1]

    @property
    def size(self) -> int:
        """N, the number of items."""
        return self.logits.shape[0]

    def of_items(self, values: Tensor) -> Tensor:
        """Values of each row of logits as values of each item [N]: unchanged where each row is an item."""
        return values

    def log_probabilities(self, student: "Outputs", temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of these outputs (the teacher's) and of the student at temperatures [N]: [N, C] each."""
        t = temperature.unsqueeze(-1)  # [N, 1]
        return (
            torch.log_softmax(functional.upcast(self.logits) / t, dim=-1),
            torch.log_softmax(functional.upcast(student.logits) / t, dim=-1),
        )

    def detach(self) -> "Outputs":
        return replace(self, logits=self.logits.detach(), kept=self._kept(Tensor.detach))

    def rows(self, rows: slice) -> "Outputs":
        """The outputs of some items, where each item is a row."""
        return replace(self, logits=self.logits[rows], kept=self._kept(lambda feature: feature[rows]))

    def _kept(self, change: Callable[[Tensor], Tensor]) -> Features | None:
        return None if self.kept is None else self.features.mapped(change)
