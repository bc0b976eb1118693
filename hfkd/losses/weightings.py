"""Weightings: the weight of each item in the distillation loss. `Items -> w [N]`, from raw logits, without gradient.

N items, C classes.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hfkd.losses.base import Requirements, Weighting, requirements_of
from hfkd.losses.functional import standardize
from hfkd.losses.items import Items
from hfkd.losses.outputs import Outputs
from hfkd.losses.registry import WEIGHTINGS, register_weighting
from hfkd.losses.slot_values import is_ours, right
from hfkd.losses.temperatures import Level
from hfkd.utils.argument_types import Positive, SoftmaxTemperature, checked
from hfkd.utils.slots import resolve


@register_weighting("uniform")
@checked
@dataclass
class Uniform(Weighting):
    """w_n = 1: every item counts the same."""

    def requirements(self) -> Requirements:
        return Requirements(within_samples=True, signals=True)

    def __call__(self, items: Items) -> Tensor:
        return torch.ones(len(items), device=items.sample.device)


@register_weighting("entropy")
@checked
@dataclass
class Entropy(Weighting):
    """EA-KD's entropy-based adaptive weight (Eq. 7), from teacher and student entropy at T' = 3.

        w_n = H_T (1 + H_S / H_ub) / 2,  H_ub = log C

    The paper's loss is the mean of w_n l_n, without division by the sum of w. As w lies in [0, log C], the size of the
    loss changes too (`Matched` corrects this). `upper_bound` replaces log C by a constant: the authors' code has 100 in
    its KD and DKD files, so that w is H_T / 2 to within 5 %. Ablations: `student=False` is w = H_T (ER-KD, the
    predecessor); `teacher=False` is w = H_S; `interaction=True` is the product only, w = H_T H_S / H_ub;
    `inverted=True` replaces each H by log C - H. `level="item"` gives weights to tokens instead of sequences.
    `standardized=True` computes the entropies of standardised logits, as the released code does with DKD only;
    otherwise raw logits are used.
    """

    temperature: SoftmaxTemperature = 3.0
    upper_bound: Positive | None = None
    student: bool = True
    inverted: bool = False
    teacher: bool = True
    interaction: bool = False
    level: Level = "sample"
    standardized: bool = False

    def __post_init__(self) -> None:
        if not (self.student or self.teacher):
            raise ValueError(
                "Entropy: student=False and teacher=False leave no entropy to weight by: set one of them to True, or "
                "use weighting='uniform'"
            )
        if self.interaction and not (self.student and self.teacher):
            raise ValueError(
                "Entropy: interaction=True is the product of both entropies: leave student and teacher set to True"
            )

    def requirements(self) -> Requirements:
        raw = not self.standardized
        return Requirements(within_samples=True, signals=raw, classes=1 if raw else 3)

    def __call__(self, items: Items) -> Tensor:
        # The bound divides the student's entropy, so it is that of the student's vocabulary.
        bound = math.log(items.student.num_classes) if self.upper_bound is None else self.upper_bound
        if not self.student:
            return self._entropy(items, items.teacher)
        if not self.teacher:
            return self._entropy(items, items.student)
        h_t, h_s = self._entropy(items, items.teacher), self._entropy(items, items.student)
        return h_t * h_s / bound if self.interaction else h_t * (1 + h_s / bound) / 2

    def _entropy(self, items: Items, outputs: Outputs) -> Tensor:
        outputs = replace(outputs, logits=standardize(outputs.logits)) if self.standardized else outputs
        h = outputs.entropy(self.temperature)
        h = math.log(outputs.num_classes) - h if self.inverted else h
        return items.mean_over_sample(h) if self.level == "sample" else h


class _OfTheBatch(Weighting):
    """Weights that are computed from another weighting's w over the whole batch.

    The batch is that of one forward pass: with gradient accumulation or several ranks, each micro-batch is treated
    separately. A mean counts each item as the loss does (`Items.share`).
    """

    weighting: Any
    _inner: Any

    def __post_init__(self) -> None:
        self._inner = resolve(self.weighting, WEIGHTINGS, "weighting")

    def requirements(self) -> Requirements:
        return replace(requirements_of(self._inner), within_samples=False)

    def __call__(self, items: Items) -> Tensor:
        w = self._inner(items)
        mean = w.mean() if items.share is None else (items.share * w).sum() / items.share.sum()
        made = self.made_of(w, mean)
        # Invalid weights would be hidden in a mean, so they are marked first.
        return made if is_ours(self._inner) else made.where(right("weighting", w), torch.nan)

    @abstractmethod
    def made_of(self, w: Tensor, mean: Tensor) -> Tensor:
        """[N] and the mean -> [N]."""


@register_weighting("matched")
@checked
@dataclass
class Matched(_OfTheBatch):
    """Another weighting, rescaled to mean 1 over the batch: w_n / mean(w).

    One of two controls that separate reweighting from a larger loss: the weights of EA-KD, with the size of KD's loss.
    With a batch of one sample all weights are 1.
    """

    weighting: Any = "entropy"
    _inner: Any = field(init=False, repr=False)

    def requirements(self) -> Requirements:
        # Weights can only differ with two samples, because the items of a sample share one weight, unless level="item".
        alone = isinstance(self._inner, Uniform) or getattr(self._inner, "level", "sample") == "item"
        return replace(super().requirements(), samples=1 if alone else 2)

    def made_of(self, w: Tensor, mean: Tensor) -> Tensor:
        return torch.where(mean > 0, w / mean, torch.ones_like(w))


@register_weighting("averaged")
@checked
@dataclass
class Averaged(_OfTheBatch):
    """The mean of another weighting over the batch, for every item: w_n = mean(w).

    The other control: KD with the same weight for all items, and the size of EA-KD's loss in each step.
    """

    weighting: Any = "entropy"
    _inner: Any = field(init=False, repr=False)

    def made_of(self, w: Tensor, mean: Tensor) -> Tensor:
        return mean.expand_as(w)
