"""Weightings: how much each item counts in the distillation loss. `Items -> w [N]`, on raw logits, without gradient.

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


uniform = Uniform()


@register_weighting("entropy")
@checked
@dataclass
class Entropy(Weighting):
    """EA-KD's entropy-based adaptive weight (Eq. 7), from teacher and student entropy at T' = 3.

        w_n = H_T (1 + H_S / H_ub) / 2,  H_ub = log C

    The paper's loss is the mean of w_n l_n, not divided by the sum of w: w lies in [0, log C], so the loss also grows
    (`Matched` undoes that). A constant `upper_bound` in place of log C: the authors' release has 100 in its KD and DKD
    files, which leaves w = H_T / 2 to within 5 %.
    Ablations: `student=False` is w = H_T (ER-KD, the predecessor); `teacher=False` is w = H_S; `interaction=True` is
    the product alone, w = H_T H_S / H_ub; `inverted=True` puts log C - H in place of every H.
    `level="item"` weighs tokens one by one instead of sequences. `standardized=True` takes entropies of standardised
    logits, as the release does with DKD and only there; otherwise weights see the raw ones.
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
            raise ValueError("Entropy: student=False and teacher=False leave no entropy; 'uniform' weighs all alike")
        if self.interaction and not (self.student and self.teacher):
            raise ValueError("Entropy: interaction=True is the product of both entropies; leave student and teacher on")

    def requirements(self) -> Requirements:
        return Requirements(within_samples=True, signals=not self.standardized)

    def __call__(self, items: Items) -> Tensor:
        # The student's entropy is the one that is divided: where vocabularies differ, by the bound of its own.
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
    """Weights that are made of another weighting's, w, of all items at hand.

    That is those of one forward pass: under gradient accumulation or several ranks each micro-batch stands by itself.
    """

    weighting: Any
    _inner: Any

    def __post_init__(self) -> None:
        self._inner = resolve(self.weighting, WEIGHTINGS, "weighting")

    def requirements(self) -> Requirements:
        return replace(requirements_of(self._inner), within_samples=False)

    def __call__(self, items: Items) -> Tensor:
        w = self._inner(items)
        made = self.made_of(w)
        # A mean of wrong weights says nothing of each: those are marked before they are lost in it.
        return made if is_ours(self._inner) else made.where(right("weighting", w), torch.nan)

    @abstractmethod
    def made_of(self, w: Tensor) -> Tensor:
        """[N] -> [N]."""


@register_weighting("matched")
@checked
@dataclass
class Matched(_OfTheBatch):
    """Another weighting rescaled to mean 1 over the batch at hand: w_n / mean(w).

    One of two controls that tell reweighting apart from a larger loss: the weights of EA-KD at the size of KD's loss.
    A batch of one sample has nothing to match.
    """

    weighting: Any = "entropy"
    _inner: Any = field(init=False, repr=False)

    def requirements(self) -> Requirements:
        # For weights to differ: a sample's items share theirs, unless level="item".
        alone = isinstance(self._inner, Uniform) or getattr(self._inner, "level", "sample") == "item"
        return replace(super().requirements(), samples=1 if alone else 2)

    def made_of(self, w: Tensor) -> Tensor:
        mean = w.mean()
        return torch.where(mean > 0, w / mean, torch.ones_like(w))


@register_weighting("averaged")
@checked
@dataclass
class Averaged(_OfTheBatch):
    """The mean of another weighting over the batch at hand, for every item: w_n = mean(w).

    The other control: KD, all items alike, at the size of EA-KD's loss, step by step.
    """

    weighting: Any = "entropy"
    _inner: Any = field(init=False, repr=False)

    def made_of(self, w: Tensor) -> Tensor:
        return w.mean().expand_as(w)
