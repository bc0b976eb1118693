"""DIST: match relations between classes and between images instead of probabilities.

V views, B images, N = V B items, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfkd.losses.base import Objective, Requirements
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import NotNegative, checked


@register_objective("dist")
@checked
@dataclass
class DIST(Objective):
    """DIST (Huang et al., NeurIPS 2022, "Knowledge Distillation from A Stronger Teacher").

        inter   beta T_n² (1 - pearson_c(p_n, q_n))                     over an image's classes: the objective
        intra   gamma T² mean_c (1 - pearson_n(p_nc, q_nc))             over the batch, class by class: relations

    p, q are the softmax probabilities at T_n. The intra term is one value per view, which each item receives times its
    T_n². With two classes the inter correlation is 1 or -1, without a gradient: beta must be 0. With one image there is
    no correlation, and the term is left out; with two it is 1 or -1, without a gradient. Each norm is clamped to at
    least 1e-8; the authors' code adds 1e-8 to the product of the norms, which at T = 1 and confident logits changes the
    value by up to 3 % and its gradient by up to 44 %. The released defaults are beta = gamma = 1 and T = 1; 2, 2 and 4
    are usual on CIFAR-100 (not verified).
    """

    beta: NotNegative = 1.0
    gamma: NotNegative = 1.0

    def requirements(self) -> Requirements:
        return Requirements(relations=True, items=3 if self.gamma else 1, classes=3 if self.beta else 1)

    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        log_p, log_q = items.log_probabilities(temperature)
        return self.beta * temperature**2 * (1 - _pearson(log_p.exp(), log_q.exp(), dim=-1))

    def relations(self, items: Items, temperature: Tensor) -> Tensor:
        p, q = (x.exp().unflatten(0, (items.views, -1)) for x in items.log_probabilities(temperature))  # [V, B, C]
        if p.shape[1] < 2:
            return torch.zeros_like(temperature)
        intra = (1 - _pearson(p, q, dim=1)).mean(-1, keepdim=True)  # [V, 1]
        return self.gamma * temperature**2 * intra.expand(p.shape[:2]).flatten()


def _pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    a, b = (x - x.mean(dim, keepdim=True) for x in (a, b))
    return torch.cosine_similarity(a, b, dim=dim, eps=1e-8)
