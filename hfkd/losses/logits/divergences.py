"""Divergences between the softened distributions of teacher, p, and student, q.

N items, C classes or vocabulary. All in log space: finite, with finite gradients, for any finite logits.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hfkd.losses.base import Objective
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import Share, checked

Scale = Literal["squared", "none"]


@dataclass(kw_only=True)
class Divergence(Objective):
    """T_n² D(p_n, q_n): a divergence of second order, for which T² keeps the size of the gradient when T changes.

    `scale="none"` leaves T² out, for protocols that do (DSKD).
    """

    scale: Scale = "squared"

    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        divergence = self.between(*items.log_probabilities(temperature))
        return temperature**2 * divergence if self.scale == "squared" else divergence

    @abstractmethod
    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """[N, C] log-probabilities of teacher and student -> [N], without T²."""


@register_objective("kd")
@checked
@dataclass
class KD(Divergence):
    """Hinton et al. 2015: T_n² KL(p_n || q_n), p = softmax(z_teacher / T_n), q = softmax(z_student / T_n)."""

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return kl(log_p, log_q)


@register_objective("reverse_kl")
@checked
@dataclass
class ReverseKL(Divergence):
    """MiniLLM's direction (Gu et al., ICLR 2024, Eq. 1), token by token: T_n² KL(q_n || p_n). Seeks one mode."""

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return kl(log_q, log_p)


@register_objective("jsd")
@checked
@dataclass
class JSD(Divergence):
    """Generalised Jensen-Shannon divergence (GKD, Agarwal et al., ICLR 2024, Eq. 1).

        beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q

    The formula is 0 for beta 0 and 1, but divided by beta (1 - beta) it tends to KL(p || q) for beta -> 0 and KL(q ||
    p) for beta -> 1. Therefore beta=0 is defined as forward KL (`KD`) and beta=1 as `ReverseKL`, as in TRL; the value
    is not continuous there.
    """

    beta: Share = 0.5

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return jsd(log_p, log_q, self.beta)


@register_objective("skew_kl")
@checked
@dataclass
class SkewKL(Divergence):
    """DistiLLM (Ko et al., ICML 2024, Eq. 4): KL(p || alpha p + (1 - alpha) q), bounded by -log alpha."""

    alpha: Share = 0.1

    def __post_init__(self) -> None:
        if self.alpha == 1:
            raise ValueError(f"{type(self).__name__}: alpha=1 compares a network with itself; pass a number below 1")

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return kl(log_p, mixture(log_p, log_q, self.alpha))


@register_objective("skew_reverse_kl")
@checked
@dataclass
class SkewReverseKL(SkewKL):
    """DistiLLM's skew reverse KL: KL(q || (1 - alpha) p + alpha q)."""

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return kl(log_q, mixture(log_q, log_p, self.alpha))


@register_objective("total_variation")
@checked
@dataclass
class TotalVariation(Objective):
    """f-distill's total variation distance (Wen et al., ACL 2023): sum_c |p_c - q_c| / 2, within [0, 1].

    It is of first order: its gradient shrinks with 1/T instead of 1/T², so there is no factor T².
    """

    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        log_p, log_q = items.log_probabilities(temperature)
        return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) of each row, [N, C] -> [N]."""
    return F.kl_div(log_b, log_a, log_target=True, reduction="none").sum(-1)


def jsd(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """The divergence of `JSD` of each row, [N, C] -> [N]; the entries need not sum to 1."""
    if beta in (0, 1):
        return kl(log_q, log_p) if beta else kl(log_p, log_q)
    log_m = mixture(log_p, log_q, beta)
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def mixture(log_a: Tensor, log_b: Tensor, share_of_a: float) -> Tensor:
    """log(s a + (1 - s) b), elementwise; s in [0, 1)."""
    if share_of_a == 0:
        return log_b
    return torch.logaddexp(log_a + math.log(share_of_a), log_b + math.log1p(-share_of_a))
