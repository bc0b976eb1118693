"""The distillation loss, and the only place where values are reduced to it.

loss = ce_weight * (CE + N / num_items * rest)  +  kd_weight * sum_n  w[n] * objective(items, T)[n]  /  num_items

An objective on samples (features, attention) gives l[s]; its weight w[s] is the mean of w over the sample's items, and
the sum is divided by the number of samples. With several terms (`Terms`), each is added in this way, times kd_weight
and its coefficient.

N is the number of items in the batch, num_items that of the optimizer step, and `rest` is what the student adds to its
own loss (the router loss of a mixture of experts): the losses of micro-batches add up to the loss of the whole batch.
Where items are known only after the forward pass (`Items.share`), N and num_items count samples; a detector's own loss,
with its cross-entropy, is all `rest`. Terms of an objective that compare items with each other (`Objective.relations`)
are added without a weight. CE is the mean over the items that have a label (`Items.labelled`), both in the loss and in
the log.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfkd.losses.base import (
    Objective,
    Requirements,
    refuse_unread,
    requirements_of,
    softens,
    trained_modules,
    with_settings,
)
from hfkd.losses.counts import Counts, Number, at_least
from hfkd.losses.fitted_values import check_fitted, refuse_fitted
from hfkd.losses.functional import upcast
from hfkd.losses.items import HiddenItems, Items
from hfkd.losses.registry import WEIGHTINGS
from hfkd.losses.slot_types import ObjectiveLike, TemperatureLike, WeightingLike
from hfkd.losses.slot_values import is_ours, nan_where_wrong, one_per_item, one_per_sample
from hfkd.losses.temperatures import USUAL, Constant, Energy, Fitted, resolve_temperature
from hfkd.losses.terms import Term, resolve_objective, terms_of
from hfkd.utils.argument_types import NotNegative, fitting
from hfkd.utils.slots import resolve
from hfkd.utils.targets import IGNORED

__all__ = ["DistillationLoss", "cross_entropy", "resolve"]


SLOTS = ("objective", "temperature", "weighting")
WEIGHTS = ("ce_weight", "kd_weight")


class DistillationLoss(nn.Module):
    """Cross-entropy on the labels plus a distillation objective with a temperature and a weight for each item.

    Each slot is a name, `"name(key=value, ...)"`, or a callable; `temperature` may also be a number. Slots that are
    modules become children, so that their parameters are trained and saved with the loss. `objective` may also be a
    sum, such as `"kd + 100 * fitnet(layer=2)"` or a list (`hfkd.utils.slots.resolve_sum`). The defaults are those of KD
    on CIFAR-100. `label_smoothing` is the share of the uniform distribution in the labels of the cross-entropy; it
    changes nothing else.

    forward(items, num_items): `num_items` is the number of items of the whole optimizer step, over all ranks and
    accumulated batches; None: the number in this batch. Returns the loss and its parts (means over the batch, without
    gradient): `ce`, `kd` (each of several terms, and one that reads no temperature, is under its own name, without its
    coefficient), `temperature`, `weight`,
    for `Energy` the shares of its two groups, and `router_loss` or `auxiliary_loss` where the student has one.

    autocast: the context in which terms on inner features are computed, whose dtype is that of the networks' forward
    pass.
    """

    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __init__(
        self,
        objective: ObjectiveLike = "kd",
        temperature: TemperatureLike = USUAL,
        weighting: WeightingLike = "uniform",
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        ce_weight = fitting("DistillationLoss", "ce_weight", ce_weight, NotNegative)
        kd_weight = fitting("DistillationLoss", "kd_weight", kd_weight, NotNegative)
        if ce_weight == kd_weight == 0:
            raise ValueError("ce_weight and kd_weight are both 0: nothing would be learned; raise one")
        self.objective = resolve_objective(objective)
        self.temperature = resolve_temperature(temperature)
        self.weighting = resolve(weighting, WEIGHTINGS, "weighting")
        self.ce_weight, self.kd_weight, self.label_smoothing = ce_weight, kd_weight, label_smoothing
        # Whether it may distil. kd_weight may change in training, to 0 and back: what the slots need and learn stays.
        self.distils = kd_weight > 0
        self.terms: tuple[Term, ...] = terms_of(self.objective)
        self._refuse_temperature()
        check_fitted(self.temperature)
        for name, slot in (("weighting", self.weighting), *(("objective", term.objective) for term in self.terms)):
            refuse_fitted(name, slot)
        refuse_unread("temperature", self.temperature)
        refuse_unread("weighting", self.weighting)
        # Slots that are modules are children already. Trainable modules inside other slots become children here.
        hidden = [m for slot in self.slots if not isinstance(slot, nn.Module) for m in trained_modules(slot)]
        if hidden:
            self.inner_modules = nn.ModuleList(hidden)
        self.temperature_chosen = True  # False: it is the default, as none was given
        self.labelled = True  # False: the rows have no labels, and the loss has no part `ce`
        self.label_term = True  # False: the caller adds its own term by `of_labels`, and `ce` is only logged
        # Custom slots: their values are checked, since they might not be valid temperatures or weights.
        self.own_slots = [name for name in ("temperature", "weighting") if not is_ours(getattr(self, name))]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in SLOTS and "terms" in vars(self):
            self._refuse_replaced(name, value)
        super().__setattr__(name, value)

    def _refuse_replaced(self, name: str, value: Any) -> None:
        """Raise ValueError for a slot that is set once the loss is built, and would not do what it says."""
        if name == "objective":
            raise ValueError(
                f"the objective of a loss was set to {value!r} after it had been built with {self.objective!r}, whose "
                "terms it would keep: build a new trainer, with the student as it is"
            )
        if not callable(value):
            raise ValueError(
                f"the {name} of a loss was set to {value!r} after it had been built, which reads names and numbers "
                "itself: set a slot, such as hfkd.losses.temperatures.Constant(2.0)"
            )

    def _refuse_temperature(self) -> None:
        if not isinstance(self.temperature, Constant) and not self.softens:
            raise ValueError(
                f"temperature={self.temperature!r} has no effect, because no term of {self.objective!r} uses a "
                "temperature: add one that does (kd + ...), or leave the temperature out"
            )

    @property
    def softens(self) -> bool:
        """Whether some term reads the temperature."""
        return softens(self.objective)

    @property
    def slots(self) -> tuple[Any, Any, Any]:
        """The objective, the temperature and the weighting."""
        return self.objective, self.temperature, self.weighting

    @property
    def requirements(self) -> Requirements:
        """The joint requirements of all slots; none of a loss that is built with kd_weight 0."""
        return Requirements.joined(map(requirements_of, self.slots)) if self.distils else Requirements()

    @property
    def builds(self) -> bool:
        """Whether the objective must be built from the networks (`Objective.build`)."""
        return isinstance(self.objective, Objective) and self.objective.builds

    @property
    def unfitted(self) -> Fitted | None:
        """The slot that still needs the teacher scan, if any."""
        slot = self.temperature
        return slot if isinstance(slot, Fitted) and slot.thresholds_or_none is None else None

    def forward(self, items: Items, num_items: Counts | Number | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        items = self.seen(items)
        # A temperature that reads the student would have the student change it too, as a loss over chunks does not.
        own = "temperature" in self.own_slots
        chosen = self.choose(replace(items, student=items.student.detach()) if own else items)
        values = self.per_item(items, **chosen)
        loss = self.reduce(values, items, num_items)
        added = self.rest_logged(items) | {k: v.detach() for k, v in values.items() if k == "own_loss"}
        means = self.logged(values | chosen, items.samples_with_items, items.labelled)
        return self.with_rest(loss, items, num_items), means | added

    def seen(self, items: Items) -> Items:
        """The items as the slots see them: the teacher gets no gradient, and rows without labels have none."""
        items = items.with_fixed_teacher()
        return items if self.labelled else replace(items, labels=None)

    # The three steps of forward. A chunked loss takes the first for all items and the second chunk by chunk.

    def choose(self, items: Items) -> dict[str, Tensor]:
        """The `temperature` and `weight` of each item [N]; an empty dict with kd_weight 0."""
        if not self.kd_weight:
            return {}
        temperature = self._chosen("temperature", items)
        with torch.no_grad():
            weight = self._chosen("weighting", items)
        return {"temperature": temperature, "weight": weight}

    def _chosen(self, slot: str, items: Items) -> Tensor:
        values = one_per_item(items, slot, getattr(self, slot)(items))
        return nan_where_wrong(slot, values) if slot in self.own_slots else values

    @property
    def by_sample(self) -> bool:
        """Whether some term has one value per sample instead of per item."""
        return any(term.by_sample for term in self.terms)

    def per_item(
        self, items: Items, temperature: Tensor | None = None, weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The cross-entropy `ce` of each item, and the weighted terms by name (`kd`): [N], or [S] for terms on samples.

        Also the objective's `relations` [N] and `own_loss`, a scalar, if it has any.
        """
        values = self.of_each_label(items)
        if temperature is None or weight is None:
            return values
        values |= self.weighted(self.terms, items, temperature, weight)
        if isinstance(self.objective, Objective):
            relations = self.objective.relations(items, temperature)
            own = self.objective.own_loss(items, temperature)
            if relations is not None:
                values["relations"] = one_per_item(items, "objective's relations", relations)
            if own is not None:
                values["own_loss"] = own
        return values

    def of_each_label(self, items: Items) -> dict[str, Tensor]:
        """The cross-entropy `ce` [N], if there are labels."""
        if items.labels is None:
            return {}
        return {"ce": cross_entropy(items.student.logits, items.labels, self.label_smoothing)}

    def weighted(self, terms: Sequence[Term], items: Items, temperature: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """The weighted values of some of the terms, by name: [N], or [S] for terms on samples."""
        values = {}
        for term in terms:
            with self.autocast() if term.reads_features else nullcontext():
                found = term.objective(items, temperature)
            if term.by_sample:
                values[term.name] = items.sample_means(weight) * one_per_sample(items, found)
            else:
                values[term.name] = weight * one_per_item(items, "objective", found)
        return values

    def reduce(
        self, values: dict[str, Tensor], items: Items | HiddenItems, num_items: Counts | Number | None = None
    ) -> Tensor:
        """The loss, divided by the counts of the optimizer step (None: of this batch); 0 for a step without items."""
        share = items.share if isinstance(items, Items) else None
        by_sample = self.by_sample or share is not None
        here = items.samples_with_items if by_sample and isinstance(items, Items) and num_items is None else len(items)
        labels = items.num_labels if isinstance(items, Items) else len(items)
        counts = Counts.of(num_items, labels, len(items), here)
        if by_sample and counts.samples is None:
            raise ValueError(
                f"num_items={num_items!r} does not give the number of samples, by which this objective is divided: "
                "pass Counts with samples"
            )
        of_items = at_least(counts.items)
        of_samples = at_least(counts.samples) if by_sample else of_items
        if share is not None:
            shared = [term.name for term in self.terms if not term.by_sample] + ["relations"]
            values = values | {name: share * values[name] for name in shared if name in values}
        whole = isinstance(items, Items) and items.rest_has_ce
        parts = {"ce": (self.ce_weight if self.label_term and not whole else 0.0, at_least(counts.labels))}
        for term in self.terms:
            count = of_items if share is None and not term.by_sample else of_samples
            parts[term.name] = (self.kd_weight * term.coefficient, count)
        parts["relations"] = (self.kd_weight, of_items if share is None else of_samples)
        # A term of weight 0 is left out instead of multiplied by 0, to save its backward pass.
        terms = [w * values[name].sum() / count for name, (w, count) in parts.items() if w and name in values]
        loss = sum(terms[1:], terms[0]) if terms else _nothing(values, whole)
        if "own_loss" in values:
            loss = loss + values["own_loss"] * (1 if num_items is None else len(items) / of_items)
        return loss

    def with_rest(self, loss: Tensor, items: Items | HiddenItems, num_items: Counts | Number | None = None) -> Tensor:
        """`loss` plus the student's own additional loss, scaled by the batch's share of the optimizer step's labels."""
        if items.rest is None or not self.ce_weight:
            return loss
        here: Number = len(items)
        if isinstance(items, Items):
            here = items.num_samples if items.rest_has_ce else items.num_labels
        return loss + self.of_labels(items.rest, here, num_items)

    def of_labels(self, mean: Tensor, here: Number, num_items: Counts | Number | None = None) -> Tensor:
        """A mean over the `here` labels of this batch, as a part of the loss of an optimizer step with `num_items`."""
        if num_items is None:
            return self.ce_weight * mean
        return self.ce_weight * here / at_least(Counts.of(num_items, 0, 0, 0).labels) * mean

    def rest_logged(self, items: Items | HiddenItems) -> dict[str, Tensor]:
        """The student's own additional loss as a logged part, if it has one."""
        if items.rest is None or not self.ce_weight:
            return {}
        return {items.rest_name: items.rest.detach().float()}

    def counted(self, items: Items | HiddenItems) -> Counts:
        """The counts behind the means in the log: label positions, items, and samples if there are terms on samples."""
        samples: Number | None = None
        if self.by_sample:
            seen = items if isinstance(items, Items) else items.beside
            samples = items.num_samples if seen is None else seen.samples_with_items
        tokens = items.tokens if isinstance(items, Items) else None
        return Counts(len(items) if tokens is None else tokens, len(items), samples)

    @torch.no_grad()
    def logged(
        self, parts: dict[str, Tensor], samples: Tensor | int | None = None, labelled: Tensor | int | None = None
    ) -> dict[str, Tensor]:
        """The mean of each part over the items of the batch; for terms on samples, over the `samples` that have items.

        The mean of the cross-entropy is over the `labelled` items (None: all). The shares of the temperature's groups
        are added.
        """
        of_samples = [term.name for term in self.terms if term.by_sample]  # the same order on every rank
        shape = parts["temperature" if "temperature" in parts else "ce"].shape
        of_items = {name: values for name, values in parts.items() if values.shape == shape and name not in of_samples}
        columns = torch.stack([values.detach().float() for values in of_items.values()])  # [parts, N]
        means = dict(zip(of_items, (columns.sum(-1) / max(columns.shape[-1], 1)).unbind(), strict=True))
        if "ce" in parts and "ce" not in means:  # one value per token, where items are groups of tokens
            means = {"ce": parts["ce"].detach().float().sum() / max(len(parts["ce"]), 1)} | means
        if labelled is not None and "ce" in means:
            means["ce"] = means["ce"] * (columns.shape[-1] / at_least(labelled))
        for name in (name for name in of_samples if name in parts):
            count = len(parts[name]) if samples is None else samples
            means[name] = parts[name].detach().float().sum() / at_least(count)
        if "temperature" in parts and isinstance(self.temperature, Energy):
            means |= self.temperature.groups(parts["temperature"])
        return means

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in self.describe().items())

    def describe(self) -> dict[str, Any]:
        """The slots and weights as they were built, for logs, model cards and results."""
        slots = {name: getattr(self, name) for name in SLOTS}
        weights = {"ce_weight": self.ce_weight, "kd_weight": self.kd_weight}
        smoothing = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        return {k: with_settings(v) for k, v in slots.items()} | weights | smoothing


def _nothing(values: dict[str, Tensor], without_gradient: bool) -> Tensor:
    """A loss of 0, with a graph unless another part of the loss has one."""
    first = next(iter(values.values()))
    return (first.detach() if without_gradient else first).sum() * 0.0


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each item [N]; labels [N] class ids or [N, C] mixed, with `smoothing / C` in each class.

    It is 0 for an item without a label (-100).
    """
    z = upcast(logits)
    targets = labels.to(z.dtype) if labels.is_floating_point() else labels
    return F.cross_entropy(z, targets, reduction="none", label_smoothing=smoothing, ignore_index=IGNORED)


def has_label(labels: Tensor) -> Tensor:
    """Which items have one [N], for labels as `cross_entropy` takes them."""
    return labels.new_ones(len(labels), dtype=torch.bool) if labels.is_floating_point() else labels != IGNORED
