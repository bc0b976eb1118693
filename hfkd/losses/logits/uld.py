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

FEW = 8  # times as many classes: the largest are found without sorting all


@dataclass
class AcrossTokenizers(Objective):
    """Objectives that a teacher with another tokenizer serves. With one tokenizer each item is a token of both."""

    merge: Literal["first", "last"] = "first"
    position: Literal["before", "at"] = "before"
    eos: bool = False

    def probabilities(self, items: Items, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Of teacher [N, C] and student [N, D] at each item's temperature."""
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

    It is their Wasserstein distance:

        l_n = sum_k |p_(k) - q_(k)|,  both in descending order, the shorter vocabulary padded with zeros

    For a teacher with the student's tokenizer or another. Of first order: no T². The paper pairs the tokens of both
    texts by their number, as far as both go (`pairs="position"`), and weighs the loss by 1.5; `pairs="bytes"` groups
    tokens that end at the same byte of the response, and merges each group's probabilities as GOLD does: those of its
    first token times the probabilities of its own later ones, or `merge="last"`, the last times the earlier ones.
    `eos` makes the two ends of sequence a pair. `position="at"` reads each token's probabilities one position late,
    after it, as TRL's default does: for comparison.
    """

    pairs: Literal["position", "bytes"] = "position"

    @property
    def pairing(self) -> Pairing:
        return Pairing(self.pairs, self.eos, self.position == "at")

    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        return sorted_l1(*self.probabilities(items, temperature))


def sorted_l1(p: Tensor, q: Tensor) -> Tensor:
    """sum_k |p_(k) - q_(k)| in descending order, zeros where one has fewer classes: [N, C], [N, D] -> [N]."""
    shorter, longer = (p, q) if p.shape[-1] <= q.shape[-1] else (q, p)
    count = shorter.shape[-1]
    if not count:
        return longer.sum(-1)
    shorter = shorter.sort(dim=-1, descending=True).values
    if count * FEW > longer.shape[-1]:
        longer = longer.sort(dim=-1, descending=True).values
        return (longer - pad(shorter, (0, longer.shape[-1] - count))).abs().sum(-1)
    # What is compared with zeros need not be in order: its sum is enough.
    largest = longer.topk(count, dim=-1).values
    return (largest - shorter).abs().sum(-1) + longer.sum(-1) - largest.sum(-1)
