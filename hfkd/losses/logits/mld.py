"""Multi-level logit distillation: instances, batch and classes, over several temperatures and two views.

K temperatures, V views, B images, N = V B items, C classes. P are softmax probabilities of teacher (t) and student (s).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hfkd.losses.base import Objective, Requirements
from hfkd.losses.functional import upcast
from hfkd.losses.items import Items
from hfkd.losses.logits.divergences import kl
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import SoftmaxTemperature, checked
from hfkd.utils.devices import constant


@register_objective("mld")
@checked
@dataclass
class MLD(Objective):
    """MLD (Jin et al., CVPR 2023, "Multi-Level Logit Distillation"), on a weak (w) and a strong view (s) of each image.

        instance   m_n sum_T T² KL_w(T)_n   +   sum_T T² KL_s(T)_n            each item's own: the objective
        batch      sum_T sum_n m_n ||(Pt Pt' - Ps Ps')_n||² / B  (weak)  + without m (strong)      } relations: [B, B]
        class      sum_T sum_c m_c ||(Pt' Pt - Ps' Ps)_c||² / C  (weak)  + without m (strong)      } and [C, C]

    T runs over the item's own temperature and `temperatures`. m_n = 1 where the teacher's confidence on the weak view
    (largest probability at T = 1) is at most the batch's median, m_c likewise with the classes' summed probabilities.
    Each row of the batch term counts for its item; the class term is one value per view, divided equally among its
    items. Neither has the factor T². With one view, only the weak terms are computed. `variant="released"` computes
    what the public code does: its masks multiply means, and so act as the constant 0.5; the strong terms at the last
    two of `temperatures` are computed on the weak view again, and the batch and class terms of the strong view are left
    out. `centre`: for Energy KD on MLD ("Energy Multi", unreleased), T_n - centre is added to each of `temperatures`,
    with a minimum of 1 (2 - 2 would be 0). Published: ce_weight 0.1, kd_weight 0.9, T = 4 (with standardised logits T =
    2, kd_weight 9).
    """

    temperatures: tuple[SoftmaxTemperature, ...] = (3.0, 5.0, 2.0, 6.0)
    variant: Literal["paper", "released"] = "paper"
    centre: SoftmaxTemperature | None = None

    def __post_init__(self) -> None:
        if len(self.temperatures) < 2:
            raise ValueError(
                f"MLD: temperatures={self.temperatures!r} must be two or more temperatures, besides the item's own"
            )

    def requirements(self) -> Requirements:
        return Requirements(relations=True, first_view=True)

    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        t = self._all_temperatures(temperature)  # [K, N]
        log_p, log_q = (_scaled(z.logits, t).log_softmax(-1) for z in (items.teacher, items.student))  # [K, N, C]
        return (self._shares(items, t) * t**2 * kl(log_p, log_q)).sum(0)

    def relations(self, items: Items, temperature: Tensor) -> Tensor:
        t = self._all_temperatures(temperature)
        shape = (len(t), items.views, -1, items.teacher.num_classes)
        p, q = (_scaled(z.logits, t).softmax(-1).view(shape) for z in (items.teacher, items.student))  # [K, V, B, C]
        of_items = (p @ p.mT - q @ q.mT).square().sum((0, -1))  # [V, B]
        of_classes = (p.mT @ p - q.mT @ q).square().sum((0, -1))  # [V, C]
        if self.variant == "released":
            of_items, of_classes = (torch.cat([x[:1] / 2, 0 * x[1:]]) for x in (of_items, of_classes))
        else:
            of_items = torch.cat([of_items[:1] * _unsure(items), of_items[1:]])
            of_classes = torch.cat([of_classes[:1] * _rare(items), of_classes[1:]])
        return (of_items + of_classes.mean(-1, keepdim=True)).flatten()

    def _all_temperatures(self, temperature: Tensor) -> Tensor:
        """[N] -> [K, N]: the item's own first."""
        others = constant(self.temperatures, temperature.device).to(temperature.dtype)
        others = others[:, None].expand(-1, len(temperature))
        if self.centre is not None:
            others = (others + temperature - self.centre).clamp(min=1)
        return torch.cat([temperature[None], others])

    def _shares(self, items: Items, t: Tensor) -> Tensor:
        """The weight of each item's divergence at each temperature: [K, N]."""
        shares = torch.ones_like(t)
        count = len(items) // items.views
        if self.variant == "paper":
            shares[:, :count] = _unsure(items)
            return shares
        shares[:, :count] = 0.5
        if items.views > 1:
            shares[-2:, :count] += 1
            shares[-2:, count:] = 0
        return shares


def _scaled(logits: Tensor, t: Tensor) -> Tensor:
    """[N, C] and [K, N] -> [K, N, C]"""
    return upcast(logits) / t.unsqueeze(-1)


@torch.no_grad()
def _unsure(items: Items) -> Tensor:
    """m_n: whether the teacher's confidence on the weak view of an image is at most the batch's median. [B]"""
    return _at_most_median(_weak_probabilities(items).amax(-1))


@torch.no_grad()
def _rare(items: Items) -> Tensor:
    """m_c: whether a class's summed teacher probability on the weak view is at most that of the median class. [C]"""
    return _at_most_median(_weak_probabilities(items).sum(0))


def _weak_probabilities(items: Items) -> Tensor:
    return upcast(items.view(0).teacher.logits).softmax(-1)


def _at_most_median(x: Tensor) -> Tensor:
    """Where x is at most its median; torch's, the lower of two middle values, selects the same as their mean."""
    return x <= x.median()
