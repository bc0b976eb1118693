"""Decoupled knowledge distillation.

N items, C classes, y the target class.
"""

from dataclasses import dataclass

from torch import Tensor

from hfkd.losses.base import Objective, Requirements
from hfkd.losses.functional import upcast
from hfkd.losses.items import Items, warmed_up
from hfkd.losses.logits.target_masses import EveryTarget, over_targets
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import NotNegative, checked


@register_objective("dkd")
@checked
@dataclass
class DKD(Objective):
    """Zhao et al., CVPR 2022, Eq. 7: T_n² (alpha TCKD_n + beta NCKD_n).

        TCKD = KL of (p_y, 1 - p_y);  NCKD = KL over the softmax of the classes other than y

    so that KL(p || q) = TCKD + (1 - p_y) NCKD. The sum is multiplied by min(e / warmup_epochs, 1), e = 1 in the first
    epoch; `warmup_epochs=0` switches this off. The authors compute log(1 - p_y) from a sum of probabilities, which
    underflows; here it is a difference of logsumexps, finite for any finite logits. With C = 2, NCKD is 0. For labels
    mixed by MixUp or CutMix, or smoothed, see `over_targets`.
    """

    alpha: NotNegative = 1.0
    beta: NotNegative = 8.0
    warmup_epochs: NotNegative = 20

    def requirements(self) -> Requirements:
        return Requirements(epochs=self.warmup_epochs, labels=True)

    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        terms = over_targets(
            items.labels,
            lambda y: self._sum(temperature, *tckd_nckd(items, temperature, y)),
            lambda: self._sum(temperature.unsqueeze(-1), *every_tckd_nckd(items, temperature)),
        )
        return warmed_up(items.progress, self.warmup_epochs) * terms

    def _sum(self, temperature: Tensor, tckd: Tensor, nckd: Tensor) -> Tensor:
        return temperature**2 * (self.alpha * tckd + self.beta * nckd)


def tckd_nckd(items: Items, temperature: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of each item [N], without T², for the target classes `labels` [N]."""
    y = labels.unsqueeze(-1)  # [N, 1]
    p = decoupled(items.teacher.logits, temperature, y)
    q = decoupled(items.student.logits, temperature, y)
    target = p.log_target.exp() * (p.log_target - q.log_target) + p.log_rest.exp() * (p.log_rest - q.log_rest)
    # The target class is not part of NCKD: its weight is set to 0.
    weights = p.log_others.exp().scatter(-1, y, 0.0)
    return target, (weights * (p.log_others - q.log_others)).sum(-1)


def every_tckd_nckd(items: Items, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """`tckd_nckd` with each class in turn as the target: [N, C] both."""
    t = temperature.unsqueeze(-1)
    p, q = (EveryTarget.of(upcast(z.logits) / t) for z in (items.teacher, items.student))
    rest = p.log_rest - q.log_rest
    ratio = p.log_p - q.log_p
    target = p.log_p.exp() * ratio + p.log_rest.exp() * rest
    return target, p.mean_of_others(ratio) - rest


@dataclass(frozen=True)
class Decoupled:
    log_target: Tensor  # [N]    log p_y
    log_rest: Tensor  # [N]    log (1 - p_y)
    log_others: Tensor  # [N, C] log of the softmax over the classes other than y; finite but meaningless at y


def decoupled(logits: Tensor, temperature: Tensor, y: Tensor) -> Decoupled:
    """The parts of the target classes y [N, 1] and of the others in each item's softmax at its temperature [N]."""
    z = upcast(logits) / temperature.unsqueeze(-1)  # [N, C]
    everything = z.logsumexp(-1)
    others = z.scatter(-1, y, float("-inf")).logsumexp(-1)
    return Decoupled(z.gather(-1, y).squeeze(-1) - everything, others - everything, z - others.unsqueeze(-1))
