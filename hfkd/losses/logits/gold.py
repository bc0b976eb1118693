"""GOLD: classes of the same text compared one by one, the others sorted.

N items, C and D classes of teacher and student, k of them of the same text in both.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfkd.losses.groups import FLOOR, GroupOutputs
from hfkd.losses.items import Items
from hfkd.losses.logits.divergences import kl, mixture
from hfkd.losses.logits.uld import AcrossTokenizers, sorted_l1
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import NotNegative, Share, checked
from hfkd.utils.token_groups import Pairing


@register_objective("gold")
@checked
@dataclass
class GOLD(AcrossTokenizers):
    """General On-policy Logit Distillation (Patiño et al., Hugging Face 2025), for a teacher with another tokenizer.

        l_n = a JSD_beta(p', q') + b sum_j |p''_(j) - q''_(j)|

    p, q are the probabilities of groups of tokens that end at the same byte of the response: those of the group's
    first token times the probabilities of its own later ones (`merge="last"`: the last times the earlier ones, the
    chain rule). p', q' are of the k vocabulary entries that stand for the same bytes (and of both ends of sequence),
    p'' and q'' of the others in descending order. JSD is beta KL(p' || m) + (1 - beta) KL(q' || m), m = beta p' +
    (1 - beta) q', KL(p' || q') at beta 0 and KL(q' || p') at 1, each entry 1e-8 or more and nothing normalised, so that
    it may be below 0. a = k / C and b = 1 - k / C, or `matched` and `unmatched`. No T².
    `eos` makes the two ends of sequence a pair. TRL reads each token's probabilities one position late, after it:
    `position="at"`; and takes entries that are written alike in both vocabularies for equal, where here bytes decide.
    With one tokenizer all entries are equal, and each token is an item.
    """

    beta: Share = 0.5
    matched: NotNegative | None = None
    unmatched: NotNegative | None = None

    divergence = False  # unnormalised, so it may be negative

    def __post_init__(self) -> None:
        if (self.matched is None) != (self.unmatched is None):
            raise ValueError(
                f"GOLD: matched={self.matched} and unmatched={self.unmatched} weigh the two parts against each other: "
                "give both, or neither"
            )

    @property
    def pairing(self) -> Pairing:
        return Pairing("bytes", self.eos, self.position == "at")

    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        p, q = self.probabilities(items, temperature)
        its, mine = _same(items)
        if its is None or mine is None:
            compared, others, share = self.compared(p, q), None, 1.0
        else:
            compared = self.compared(p.index_select(-1, its), q.index_select(-1, mine))
            others, share = sorted_l1(_without(p, its), _without(q, mine)), len(its) / p.shape[-1]
        a, b = (share, 1 - share) if self.matched is None or self.unmatched is None else (self.matched, self.unmatched)
        return a * compared if others is None else a * compared + b * others

    def compared(self, p: Tensor, q: Tensor) -> Tensor:
        """The generalised Jensen-Shannon divergence of [N, k] probabilities that need not add up to 1."""
        log_p, log_q = (x.clamp(min=FLOOR).log() for x in (p, q))
        if self.beta in (0, 1):
            return kl(log_q, log_p) if self.beta else kl(log_p, log_q)
        log_m = mixture(log_p, log_q, self.beta)
        return self.beta * kl(log_p, log_m) + (1 - self.beta) * kl(log_q, log_m)


def _same(items: Items) -> tuple[Tensor | None, Tensor | None]:
    """Entries of teacher and student that are equal; None where all are, of one vocabulary."""
    if isinstance(items.teacher, GroupOutputs) and isinstance(items.student, GroupOutputs):
        return items.teacher.same, items.student.same
    return None, None


def _without(values: Tensor, entries: Tensor) -> Tensor:
    """Values [N, C] of all but these entries."""
    left = torch.ones(values.shape[-1], dtype=torch.bool, device=values.device).index_fill(0, entries, False)
    return values[:, left]
