"""Normalised knowledge distillation.

N items, C classes, y the target class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfkd.losses.base import Objective, Requirements
from hfkd.losses.functional import upcast
from hfkd.losses.items import Items
from hfkd.losses.logits.dkd import decoupled
from hfkd.losses.logits.target_masses import EveryTarget, over_targets
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import NotNegative, checked


@register_objective("nkd")
@checked
@dataclass
class NKD(Objective):
    """NKD (Yang et al., ICCV 2023, "From Knowledge Distillation to Self-Knowledge Distillation").

        - p_y log q_y  -  gamma T_n² sum_{c != y} p'_c log q'_c

    p_y, q_y at T = 1; p', q' the softmax at T_n over the classes other than y. A cross-entropy, not a divergence: it is
    not zero where the student equals the teacher. Published with gamma 1.5, T = 1, beside a cross-entropy of weight 1.
    For mixed and smoothed labels see `over_targets`.
    """

    divergence = False
    gamma: NotNegative = 1.5

    def requirements(self) -> Requirements:
        return Requirements(labels=True)

    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        return over_targets(
            items.labels,
            lambda y: self._of_target(items, temperature, y),
            lambda: self._of_every_target(items, temperature),
        )

    def _of_target(self, items: Items, temperature: Tensor, labels: Tensor) -> Tensor:
        y, ones = labels.unsqueeze(-1), torch.ones_like(temperature)
        target = (
            decoupled(items.teacher.logits, ones, y).log_target.exp()
            * decoupled(items.student.logits, ones, y).log_target
        )
        p, q = (decoupled(z.logits, temperature, y).log_others for z in (items.teacher, items.student))
        others = (p.exp().scatter(-1, y, 0.0) * q).sum(-1)
        return -target - self.gamma * temperature**2 * others

    def _of_every_target(self, items: Items, temperature: Tensor) -> Tensor:
        """[N, C]"""
        target = upcast(items.teacher.logits).softmax(-1) * torch.log_softmax(upcast(items.student.logits), -1)
        t = temperature.unsqueeze(-1)
        p, q = (EveryTarget.of(upcast(z.logits) / t) for z in (items.teacher, items.student))
        return -target - self.gamma * t**2 * (p.mean_of_others(q.log_p) - q.log_rest)
