"""GOLD: vocabulary entries with the same text are compared one by one, the others sorted.

N items, C and D classes of teacher and student, k of them with the same text in both.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfkd.losses.groups import FLOOR, GroupOutputs
from hfkd.losses.items import Items
from hfkd.losses.logits.divergences import jsd
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

    p, q are the merged probabilities of groups of tokens that end at the same byte of the response: the distribution at
    the group's first token, times the probabilities of its later tokens (`merge="last"`: the distribution at the last
    token times the probabilities of the earlier ones, the chain rule). p', q' are those of the k vocabulary entries
    that stand for the same bytes (and of the end-of-sequence tokens), p'' and q'' those of the others in descending
    order. JSD is beta KL(p' || m) + (1 - beta) KL(q' || m), m = beta p' + (1 - beta) q'; KL(p' || q') at beta 0 and
    KL(q' || p') at 1. Entries are clamped to at least 1e-8 and not normalised, so that the value may be negative. a = k
    / C and b = 1 - k / C, or `matched` and `unmatched`. There is no factor T². `eos` pairs the end-of-sequence tokens
    of both networks. TRL reads the probabilities of each token one position later, which is `position="at"`, and treats
    entries with the same spelling in both vocabularies as equal; hfkd compares their bytes. With a common tokenizer all
    entries are equal, and each token is an item.
    """

    beta: Share = 0.5
    matched: NotNegative | None = None
    unmatched: NotNegative | None = None

    divergence = False  # unnormalised, so it may be negative

    def __post_init__(self) -> None:
        if (self.matched is None) != (self.unmatched is None):
            raise ValueError(
                f"GOLD: matched={self.matched} and unmatched={self.unmatched}, but only one of the two weights is "
                "set: give both, or neither"
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
        """The generalised Jensen-Shannon divergence of [N, k] probabilities that need not sum to 1."""
        return jsd(p.clamp(min=FLOOR).log(), q.clamp(min=FLOOR).log(), self.beta)


def _same(items: Items) -> tuple[Tensor | None, Tensor | None]:
    """The equal vocabulary entries of teacher and student; None with a common vocabulary, where all are equal."""
    if isinstance(items.teacher, GroupOutputs) and isinstance(items.student, GroupOutputs):
        return items.teacher.same, items.student.same
    return None, None


def _without(values: Tensor, entries: Tensor) -> Tensor:
    """The values [N, C] without these entries."""
    left = torch.ones(values.shape[-1], dtype=torch.bool, device=values.device).index_fill(0, entries, False)
    return values[:, left]
