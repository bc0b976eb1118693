"""Adaptive KL: forward and reverse KL, weighted by where teacher and student disagree.

N items, C classes or vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfkd.losses.logits.divergences import Divergence, kl
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import Share, checked


@register_objective("adaptive_kl")
@checked
@dataclass
class AdaptiveKL(Divergence):
    """AKL (Wu et al., COLING 2025, "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for LLMs").

        (g_head KL(p || q) + g_tail KL(q || p)) / (g_head + g_tail),   g = sum of |p_c - q_c| over head or tail

    The head is the smallest set of the teacher's most probable classes with a total probability of at least mu
    (including ties with the last of them). The gaps g get no gradient. The released codes treat the class that crosses
    mu differently: DSKD's puts it in the head, as does hfkd; the authors' puts it in the tail, unless it is the first.
    """

    mu: Share = 0.5

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        head = self._share_of_the_head(log_p.detach(), log_q.detach())
        return head * kl(log_p, log_q) + (1 - head) * kl(log_q, log_p)

    def _share_of_the_head(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """g_head / (g_head + g_tail) [N]; 1/2 where both distributions are equal."""
        p = log_p.exp()
        ordered = p.sort(dim=-1, descending=True).values
        before = ordered.cumsum(-1) - ordered  # [N, C], the probability of all more likely classes
        size = (before < self.mu).sum(-1, keepdim=True).clamp(min=1)  # [N, 1]
        in_head = p >= ordered.gather(-1, size - 1)
        gap = (p - log_q.exp()).abs()
        g_head, g = (gap * in_head).sum(-1), gap.sum(-1)
        return torch.where(g > 0, g_head / g, torch.full_like(g, 0.5))
