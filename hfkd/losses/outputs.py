"""Outputs: what one network said of the items of a batch.

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

    Whole numbers are keys too. Raises ValueError for one that is not there: its term would be 0 otherwise.
    """

    def __missing__(self, layer: Layer) -> Any:
        key = feature_key(layer)
        if key in self:
            return self[key]
        raise ValueError(
            f"layer {key!r} was not kept: {sorted(self) or 'none'} were; an objective names the layers that it "
            "reads in requirements()"
        )

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Features":
        return Features({key: _mapped(value, change) for key, value in self.items()})


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Attention):
        return Attention(*(_mapped(part, change) for part in value))
    return change(value) if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class Outputs:
    """What one network said: logits [N, C], and the inner features that were `kept` of it, by key."""

    logits: Tensor
    kept: Mapping[Any, Any] | None = None  # no empty mapping: a loss that is captured whole could make none

    @property
    def features(self) -> Features:
        """Those that were kept. ValueError for any other."""
        return Features({feature_key(k): v for k, v in (self.kept or {}).items()})

    def energy(self, temperature: float) -> Tensor:
        """The energy of each item [N]. Slots ask here, not the logits: a chunked loss never holds those whole."""
        return functional.energy(self.logits, temperature)

    def entropy(self, temperature: float) -> Tensor:
        """`functional.entropy` of each item [N]."""
        return functional.entropy(self.logits, temperature)

    @property
    def num_classes(self) -> int:
        return self.logits.shape[-1]

    @property
    def size(self) -> int:
        """N, how many items they are of."""
        return self.logits.shape[0]

    def of_items(self, values: Tensor) -> Tensor:
        """Numbers of each row of logits as numbers of each item [N]: these themselves, where a row is an item."""
        return values

    def log_probabilities(self, student: "Outputs", temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Of these outputs, a teacher's, and the student's at each item's temperature [N]: [N, C] each."""
        t = temperature.unsqueeze(-1)  # [N, 1]
        return (
            torch.log_softmax(functional.upcast(self.logits) / t, dim=-1),
            torch.log_softmax(functional.upcast(student.logits) / t, dim=-1),
        )

    def detach(self) -> "Outputs":
        return replace(self, logits=self.logits.detach(), kept=self._kept(Tensor.detach))

    def rows(self, rows: slice) -> "Outputs":
        """Those of some items, where each is a row."""
        return replace(self, logits=self.logits[rows], kept=self._kept(lambda feature: feature[rows]))

    def _kept(self, change: Callable[[Tensor], Tensor]) -> Features | None:
        return None if self.kept is None else self.features.mapped(change)
