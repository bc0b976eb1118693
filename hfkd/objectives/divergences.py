"""Divergences between the softened distributions of teacher and student.

N items, C classes or vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hfkd.items import Items
from hfkd.objectives.base import Objective
from hfkd.signals import upcast

Scale = Literal["squared", "none"]


@dataclass
class KD(Objective):
    """Hinton et al. 2015: T_n² KL(p_n || q_n), p = softmax(z_teacher / T_n), q = softmax(z_student / T_n).

    T² keeps the gradient's size when T changes. `scale="none"` leaves it out, for protocols that do (DSKD).
    """

    scale: Scale = "squared"

    def __post_init__(self) -> None:
        if self.scale not in ("squared", "none"):
            raise ValueError(f"KD: scale={self.scale!r} must be 'squared' (T²) or 'none'")

    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        log_p, log_q = softened(items, temperature)
        divergence = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)  # [N, C] -> [N]
        return temperature**2 * divergence if self.scale == "squared" else divergence


def softened(items: Items, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N, C] of teacher and student at each item's temperature, float32 or wider."""
    t = temperature.unsqueeze(-1)  # [N, 1]
    return (
        torch.log_softmax(upcast(items.teacher.logits) / t, dim=-1),
        torch.log_softmax(upcast(items.student.logits) / t, dim=-1),
    )
