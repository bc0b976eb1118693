"""The loss over chunks of items, from hidden states: the logits of all items are never in memory at once.

N items, n items in a chunk, H hidden size (of student or teacher), C vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hfkd.losses import functional
from hfkd.losses.base import Objective, requirements_of, trained_modules
from hfkd.losses.chunked_outputs import BlockOutputs, ChunkedOutputs, Signal, blocks, keep, slices
from hfkd.losses.counts import Counts, Number, at_least
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.heads import gradients, head_of
from hfkd.losses.items import HiddenItems, Items, same_classes
from hfkd.losses.outputs import Outputs
from hfkd.losses.rescaling import Rescaling
from hfkd.losses.slot_values import is_ours
from hfkd.losses.sources import HeadSource, Source
from hfkd.losses.terms import Term
from hfkd.utils.argument_types import Count, fitting

# (logits before rescaling, temperatures and weights) -> (the chunk's part of the loss, the parts of each item).
PartOf = Callable[[Tensor, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
CHUNK_SIZE = 256  # for 2048 tokens, less than an eighth of the dense loss's memory; see benchmarks/chunked_loss.py


class ChunkedLoss:
    """`DistillationLoss` on tokens, with the logits of `chunk_size` tokens at a time: same loss, parts and gradients.

        loss, parts = ChunkedLoss(loss)(token_hidden(student_hidden, teacher_hidden, labels), head, teacher_head)

    The loss and gradients of the chunks are accumulated in float32 and kept for backward, which therefore works only
    once. The heads run under the current autocast, the statistics in float32. A chunk holds whole samples where they
    fit, so that a temperature or weight that depends on a sample's mean energy or entropy is known before the chunk's
    loss. For longer samples, for slots that depend on several samples (no `Requirements.within_samples`), and for a
    learned temperature, each network whose energies or entropies they read needs one more pass of its head, without
    gradient. Terms with one value per sample, from the features in `HiddenItems.beside`, are computed once for all
    samples, with the weights that the chunks found. `num_classes` truncates both heads to the common vocabulary;
    `rescalings` are what student and teacher apply to the output of their heads. Raises ValueError when built with an
    objective that needs more than each item's own logits. A learned temperature gets its gradient; no gradient flows
    through the student's energies and entropies.
    """

    def __init__(
        self,
        loss: DistillationLoss,
        chunk_size: int = CHUNK_SIZE,
        num_classes: int | None = None,
        rescalings: tuple[Rescaling, Rescaling] = (Rescaling(), Rescaling()),
    ) -> None:
        for name, value in (("chunk_size", chunk_size), ("num_classes", 1 if num_classes is None else num_classes)):
            fitting("ChunkedLoss", name, value, Count)
        refuse_unserved(loss)
        self.loss, self.chunk_size, self.num_classes, self.rescalings = loss, chunk_size, num_classes, rescalings
        # The signals that the slots read from student and teacher in the last call. The next call computes them in one
        # pass.
        self._expected: list[set[Signal]] = [set(), set()]

    def __call__(
        self,
        items: HiddenItems,
        student_head: nn.Module,
        teacher_head: nn.Module,
        num_items: Counts | Number | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        of_student, of_teacher = self.rescalings
        student = HeadSource(items.student, head_of(student_head, self.num_classes, of_student))
        teacher = HeadSource(items.teacher, head_of(teacher_head, self.num_classes, of_teacher))
        same_classes(student.num_classes, teacher.num_classes)
        return self.over(items, student, teacher, num_items)

    def over(
        self, items: HiddenItems, student: Source, teacher: Source, num_items: Counts | Number | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of items whose logits these two sources compute."""
        sources = student, teacher
        slots = self.loss.temperature, self.loss.weighting
        by_sample = items.lengths is not None and all(requirements_of(slot).within_samples for slot in slots)
        # Temperatures that are computed within a pass have no gradient.
        by_sample = by_sample and not trained(self.loss.temperature)
        groups = _groups(items.lengths or (), self.chunk_size) if by_sample else [slice(0, len(items))]
        chunks: list[tuple[slice, bool]] = []  # and whether the temperatures and weights of its items are known
        chosen: dict[str, Tensor] = {}
        for group in groups:
            first = by_sample and group.stop - group.start <= self.chunk_size
            if not first:
                keep(chosen, self._choose(items, group, sources), group, len(items))
            chunks += [(rows, not first) for rows in slices(group, self.chunk_size)]
        loss, values = ItemPass(self.loss, student, teacher, chosen, items, num_items).run(chunks)
        samples = None
        if chosen and (of_samples := terms(self.loss, by_sample=True)):
            beside = self.loss.seen(_beside(items))
            found = self.loss.weighted(of_samples, beside, **chosen)
            loss, values = loss + self.loss.reduce(found, beside, num_items), values | found
            samples = beside.samples_with_items
        loss = self.loss.with_rest(loss, items, num_items)
        return loss, self.loss.logged(values | chosen, samples) | self.loss.rest_logged(items)

    def _choose(self, items: HiddenItems, rows: slice, sources: tuple[Source, Source]) -> dict[str, Tensor]:
        """The temperatures and weights of more items than fit in a chunk."""
        student, teacher = (
            ChunkedOutputs(source, rows, self.chunk_size, expected)
            for source, expected in zip(sources, self._expected, strict=True)
        )
        chosen = self.loss.choose(_some(self.loss, items, rows, student, teacher))
        self._expected = [student.asked, teacher.asked]
        return chosen


def terms(loss: DistillationLoss, by_sample: bool) -> list[Term]:
    """The terms with one value per sample, or those with one value per item."""
    return [term for term in loss.terms if term.by_sample == by_sample]


def trained(slot: Any) -> list[nn.Parameter]:
    """The trainable parameters of a slot, including those of slots that it wraps."""
    found = dict.fromkeys(p for module in trained_modules(slot) for p in module.parameters())
    return [p for p in found if p.requires_grad]


def refuse_unserved(loss: DistillationLoss) -> None:
    """Raise ValueError for slots that a chunked loss cannot compute. Custom callables are checked in the first step."""
    if (why := unserved(loss)) is not None:
        raise ValueError(
            f"the objective {why}, which a chunked loss cannot compute: set loss_chunk_size=0, or use another objective"
        )
    for slot in (loss.temperature, loss.weighting) if loss.kd_weight else ():
        if is_ours(slot) and not requirements_of(slot).signals:
            raise ValueError(
                f"{slot!r} reads logits, but a chunked loss provides only the energy and entropy of each item: set "
                "loss_chunk_size=0, or choose a slot that reads only these"
            )


def unserved(loss: DistillationLoss) -> str | None:
    """The first term that a chunked loss cannot compute, and the reason; None if it can compute all."""
    found = ((term.objective, _unserved(term)) for term in loss.terms) if loss.kd_weight else ()
    return next((f"{objective!r} {why}" for objective, why in found if why is not None), None)


def _unserved(term: Term) -> str | None:
    needs = requirements_of(term.objective)
    unmet = {
        "reads inner layers for a value per item": needs.features and not term.by_sample,
        "compares items with each other": needs.relations and not term.by_sample,
        "may read all items' logits for a value per sample (its requirements() do not set signals=True)": (
            term.by_sample and not needs.signals
        ),
        "trains modules of its own": isinstance(term.objective, Objective) and term.objective.has_own_loss,
    }
    return next((why for why, need in unmet.items() if need), None)


@dataclass
class Pass(ABC):
    """One pass over the chunks. `chosen` holds the temperatures and weights [N] that are known before the pass.

    factor: multiplies all gradients of the pass until `backward`. In float16 the gradient of a logit, divided by the
    number of items of the step, would underflow: GradScaler's factor is applied only after these gradients are
    computed."""

    loss: DistillationLoss
    student: Source
    teacher: Source
    chosen: dict[str, Tensor]
    factor: Number = field(default=1, init=False)

    def run(self, chunks: Iterable[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, with its gradients attached, and each item's parts [N]."""
        parameters = [p for term in terms(self.loss, by_sample=False) for p in trained(term.objective)]
        learned = {k: t for k, t in self.chosen.items() if t.requires_grad}
        inputs = [*self.student.inputs, *parameters, *learned.values()]
        wanted = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        found = [torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in inputs if wanted]
        with torch.no_grad():
            values: dict[str, Tensor] = {}
            for chunk in chunks:
                self.add(chunk, found if wanted else None, parameters, values)
            loss = self.total(values)
        return (_Known.apply(loss, found, self.factor, *inputs) if wanted else loss), values

    @abstractmethod
    def add(
        self, chunk: Any, found: list[Tensor] | None, parameters: list[nn.Parameter], values: dict[str, Tensor]
    ) -> None:
        """Add the chunk's parts to `values` and its gradients to `found`, in the order of the inputs in `run`."""

    @abstractmethod
    def total(self, values: dict[str, Tensor]) -> Tensor:
        """The loss from the parts of all items."""

    @property
    @abstractmethod
    def labels(self) -> Number:
        """The number of labels of the optimizer step."""

    def logits(self, rows: slice, found: list[Tensor] | None) -> tuple[Tensor, Callable[[Tensor], None]]:
        """The student's logits, and a function that propagates their gradient, which does nothing if none is wanted."""
        if found is None:
            return self.student(rows), lambda gradient: None
        return self.student.with_backward(rows, found[: len(self.student.inputs)])

    def learn(
        self, at: slice, logits: Tensor, part_of: PartOf, found: list[Tensor] | None, parameters: list[nn.Parameter]
    ) -> dict[str, Tensor]:
        """The parts of the items `at`; overwrites the logits by their gradient, adds the other gradients to `found`."""
        if found is None:
            return part_of(functional.upcast(logits), {k: t[at] for k, t in self.chosen.items()})[1]
        others = found[len(self.student.inputs) :]
        others = [*others[: len(parameters)], *(x[at] for x in others[len(parameters) :])]
        z = functional.upcast(logits).detach().requires_grad_()  # before rescaling, which autograd differentiates
        chosen = {k: t[at].detach().requires_grad_(t.requires_grad) for k, t in self.chosen.items()}
        if logits.dtype == torch.float16:
            self.factor = at_least(self.labels)
        with torch.enable_grad():
            share, values = part_of(z, chosen)
            share = share * self.factor if logits.dtype == torch.float16 else share
        learned = [t for t in chosen.values() if t.requires_grad]
        of_logits, *of_others = gradients(share, [z, *parameters, *learned])
        logits.copy_(of_logits)
        for total, gradient in zip(others, of_others, strict=True):
            total.add_(gradient)
        return {name: v.detach() for name, v in values.items()}

    def per_item(self, items: Items, chosen: dict[str, Tensor]) -> dict[str, Tensor]:
        """The cross-entropy and the terms on items; the terms on samples are computed later, once for all chunks."""
        values = self.loss.of_each_label(items)
        return values | self.loss.weighted(terms(self.loss, by_sample=False), items, **chosen) if chosen else values


@dataclass
class ItemPass(Pass):
    """A pass over chunks of items, each with a flag whether its temperatures and weights are already in `chosen`."""

    items: HiddenItems
    num_items: Counts | Number | None

    def add(
        self,
        chunk: tuple[slice, bool],
        found: list[Tensor] | None,
        parameters: list[nn.Parameter],
        values: dict[str, Tensor],
    ) -> None:
        rows, known = chunk
        logits, backward = self.logits(rows, found)
        taught = self.teacher(rows) if self.loss.kd_weight else logits
        if not known:
            outputs = BlockOutputs(logits, self.student), BlockOutputs(taught, self.teacher)
            some = _some(self.loss, self.items, rows, *outputs)
            keep(self.chosen, self.loss.choose(some), rows, len(self.items))
        start = rows.start
        for z, z_teacher in zip(blocks(logits), blocks(taught), strict=True):
            block = slice(start, start + len(z))
            start = block.stop
            part = self.learn(block, z, partial(self._part, block, z_teacher), found, parameters)
            keep(values, part, block, len(self.items))
        backward(logits)  # by now overwritten by the gradient

    def _part(
        self, rows: slice, taught: Tensor, z: Tensor, chosen: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = Outputs(self.student.rescale(z)), Outputs(self.teacher.rescale(taught))
        values = self.per_item(_some(self.loss, self.items, rows, *outputs), chosen)
        return self._reduce(values, z), values

    def total(self, values: dict[str, Tensor]) -> Tensor:
        return self._reduce(values, self.items.student)

    @property
    def labels(self) -> Number:
        return Counts.of(self.num_items, len(self.items), len(self.items), 0).labels

    def _reduce(self, values: dict[str, Tensor], like: Tensor) -> Tensor:
        """The loss of `values`; 0 where no part is per item, that is without labels and with terms on samples only."""
        return self.loss.reduce(values, self.items, self.num_items) if values else like[:0].sum()


class _Known(torch.autograd.Function):
    """A scalar whose gradients, times a factor, are already known: backward multiplies them by the incoming gradient.

    The inputs are the leaf tensors themselves, so that each parameter's gradient is accumulated once, as DDP expects.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, found: list[Tensor], factor: Number, *inputs: Tensor) -> Tensor:
        ctx.found, ctx.factor, ctx.dtypes = found, factor, [x.dtype for x in inputs]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.found is None:
            raise RuntimeError("backward through a chunked loss works once: compute the loss again (no retain_graph)")
        found, ctx.found, incoming = ctx.found, None, incoming / ctx.factor
        return None, None, None, *(x.mul_(incoming).to(d) for x, d in zip(found, ctx.dtypes, strict=True))


def _beside(items: HiddenItems) -> Items:
    if items.beside is None:
        raise ValueError(
            "HiddenItems.beside is None, but terms with one value per sample read the networks' inner layers: pass "
            "the same items with the captured features as beside"
        )
    return items.beside


def _some(loss: DistillationLoss, items: HiddenItems, rows: slice, student: Outputs, teacher: Outputs) -> Items:
    labels = items.labels[rows] if loss.labelled else None
    place: dict[str, Any] = {"index": items.index, "seed": items.seed, "step": items.step}
    return Items(student, teacher, labels, items.sample[rows], items.num_samples, items.progress, **place)


def _groups(lengths: Sequence[int], size: int) -> list[slice]:
    """Group consecutive samples of these lengths, at most `size` items in a group; a longer sample is its own group."""
    groups, start, stop = [], 0, 0
    for length in lengths:
        if stop > start and stop + length - start > size:
            groups.append(slice(start, stop))
            start = stop
        stop += length
    found = [*groups, slice(start, stop)]
    return [group for group in found if group.stop > group.start] or found[:1]
