"""ULD: sorted probabilities, which need no common vocabulary.

N items (tokens, or groups of tokens that two tokenizers end at the same byte), C and D classes of teacher and student.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from hfkd.losses.base import Objective
from hfkd.losses.functional import upcast
from hfkd.losses.groups import GroupOutputs
from hfkd.losses.items import Items
from hfkd.losses.outputs import Outputs
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import checked
from hfkd.utils.token_groups import Pairing

FEW = 8  # if one vocabulary is this many times larger, its largest entries are found by topk instead of a sort


@dataclass
class AcrossTokenizers(Objective):
    """Objectives for a teacher with another tokenizer. With a common tokenizer each item is a token."""

    merge: Literal["first", "last"] = "first"
    position: Literal["before", "at"] = "before"
    eos: bool = False

    def probabilities(self, items: Items, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """The probabilities of teacher [N, C] and student [N, D] at each item's temperature."""
        return self._of(items.teacher, temperature), self._of(items.student, temperature)

    def _of(self, outputs: Outputs, temperature: Tensor) -> Tensor:
        if isinstance(outputs, GroupOutputs):
            return outputs.merged(temperature, self.merge == "last")
        return torch.softmax(upcast(outputs.logits) / temperature.unsqueeze(-1), dim=-1)


@register_objective("uld")
@checked
@dataclass
class ULD(AcrossTokenizers):
    """Universal Logit Distillation (Boizard et al., TMLR 2025, Eq. 4): L1 distance of sorted probabilities.

    This is their Wasserstein distance:

        l_n = sum_k |p_(k) - q_(k)|,  both in descending order, the shorter vocabulary padded with zeros

    The teacher may have the student's tokenizer or another one. The distance is of first order, so there is no factor
    T². The paper pairs the tokens of both sequences by their position, up to the shorter length (`pairs="position"`),
    and uses a weight of 1.5. `pairs="bytes"` groups tokens that end at the same byte of the response and merges the
    probabilities of each group as in GOLD: the distribution at its first token times the probabilities of its later
    tokens, or with `merge="last"`, that at the last token times those of the earlier ones. `eos` pairs the
    end-of-sequence tokens. `position="at"` reads the probabilities of each token one position later, as TRL does by
    default, for comparison.
    """

    pairs: Literal["position", "bytes"] = "position"

    @property
    def pairing(self) -> Pairing:
        return Pairing(self.pairs, self.eos, self.position == "at")

    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        return sorted_l1(*self.probabilities(items, temperature))


def sorted_l1(p: Tensor, q: Tensor) -> Tensor:
    """sum_k |p_(k) - q_(k)| in descending order, the shorter padded with zeros: [N, C], [N, D] -> [N]."""
    shorter, longer = (p, q) if p.shape[-1] <= q.shape[-1] else (q, p)
    count = shorter.shape[-1]
    if not count:
        return longer.sum(-1)
    shorter = shorter.sort(dim=-1, descending=True).values
    if count * FEW > longer.shape[-1]:
        longer = longer.sort(dim=-1, descending=True).values
        return (longer - pad(shorter, (0, longer.shape[-1] - count))).abs().sum(-1)
    # The entries that are compared with zeros need not be sorted: their sum is enough.
    largest = longer.topk(count, dim=-1).values
    return (largest - shorter).abs().sum(-1) + longer.sum(-1) - largest.sum(-1)
