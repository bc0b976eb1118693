"""Several teachers: the weighted mean of an objective over the teachers.

N items, K teachers.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hfkd.losses.items import Items
from hfkd.losses.logits.wrapping import Wrapping
from hfkd.losses.outputs import Outputs
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import SoftmaxTemperature, checked


@register_objective("average")
@checked
@dataclass
class Average(Wrapping):
    """(1 / K) sum_k objective(teacher k): every teacher counts the same (You et al., KDD 2017; DML with peers).

    With one teacher it is the objective itself. Without this wrapper an objective uses the mean of the teachers'
    logits.
    """

    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        teachers = items.teachers or (items.teacher,)
        values = [self._inner(replace(items, teacher=one, teachers=()), temperature) for one in teachers]
        return (self.shares(teachers) * torch.stack(values)).sum(0)

    def relations(self, items: Items, temperature: Tensor) -> Tensor | None:
        if not self.requirements().relations:
            return None
        teachers = items.teachers or (items.teacher,)
        values = [self._inner.relations(replace(items, teacher=one, teachers=()), temperature) for one in teachers]
        return torch.stack(values).mean(0)

    def shares(self, teachers: tuple[Outputs, ...]) -> Tensor:
        """The weight of each teacher for each item: [K, N], or [K, 1]; sums to 1 over the teachers."""
        first = teachers[0].logits
        return torch.full((len(teachers), 1), 1 / len(teachers), device=first.device)


@register_objective("inverse_entropy")
@checked
@dataclass
class InverseEntropy(Average):
    """AKD's weights (Kwon et al., ICASSP 2020): sum_k a_k objective(teacher k), a_k = (1 / H_k) / sum_j (1 / H_j).

    H_k is the entropy of teacher k's softmax at `entropy_temperature`: for each item, more confident teachers get a
    larger weight. Entropies are clamped to at least 1e-6 nat, to avoid a division by zero.
    """

    entropy_temperature: SoftmaxTemperature = 1.0

    def shares(self, teachers: tuple[Outputs, ...]) -> Tensor:
        with torch.no_grad():
            entropies = torch.stack([one.entropy(self.entropy_temperature) for one in teachers])  # [K, N]
            inverse = 1 / entropies.clamp(min=1e-6)
            return inverse / inverse.sum(0)
