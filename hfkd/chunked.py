"""The loss over chunks of items, from hidden states: the logits of all items never exist at once.

N items, n items of a chunk, H hidden size (of student or teacher), C vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hfkd import signals
from hfkd.heads import Head, gradients, head_of
from hfkd.items import HiddenItems, Items, Outputs, same_classes
from hfkd.loss import DistillationLoss

CHUNK_SIZE = 256  # with 2048 tokens below an eighth of the dense loss's memory; see benchmarks/chunked_loss.py

# Numbers of a block of logits on a CPU, 4 MiB in float32: all that the loss makes of it stays in the cache, and freed
# memory is used again instead of being asked of the system, page by page.
BLOCK = 2**20

Signal = tuple[str, float]  # a function of hfkd.signals, and its temperature


class ChunkedLoss:
    """`DistillationLoss` on tokens, with logits for `chunk_size` of them at a time: same loss, parts and gradients.

        loss, parts = ChunkedLoss(loss)(token_hidden(student_hidden, teacher_hidden, labels), head, teacher_head)

    First one pass of a head without gradient for each network whose energies or entropies the slots ask for, so that
    sequence-level choices see all items. Then each chunk's loss and gradients, which are added up in float32 and kept
    for backward, which therefore works once. The heads run in the ambient autocast, the statistics in float32.
    `num_classes` cuts both heads to the common vocabulary. ValueError when built for an objective that reads hidden
    states or compares items with each other. A temperature that learns gets its gradient; through the student's
    energies and entropies, which carry none here, no gradient flows.
    """

    def __init__(self, loss: DistillationLoss, chunk_size: int = CHUNK_SIZE, num_classes: int | None = None) -> None:
        for name, value in (("chunk_size", chunk_size), ("num_classes", 1 if num_classes is None else num_classes)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"ChunkedLoss: {name}={value!r} must be a whole number above 0")
        for need, why in (("needs_hidden", "reads hidden states"), ("relational", "compares items with each other")):
            if loss.kd_weight and getattr(loss.objective, need, False):
                raise ValueError(
                    f"the objective {loss.objective!r} {why}, which a loss over chunks cannot serve: set "
                    "loss_chunk_size 0, or use another objective"
                )
        self.loss, self.chunk_size, self.num_classes = loss, chunk_size, num_classes
        # What the slots asked of student and teacher in the last call: fetched together in the next one.
        self._expected: list[set[Signal]] = [set(), set()]

    def __call__(
        self,
        items: HiddenItems,
        student_head: nn.Module,
        teacher_head: nn.Module,
        num_items: Tensor | int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        heads = [head_of(module, self.num_classes) for module in (student_head, teacher_head)]
        student, teacher = (
            ChunkedOutputs(hidden, head, self.chunk_size, expected)
            for hidden, head, expected in zip((items.student, items.teacher), heads, self._expected, strict=True)
        )
        same_classes(student.num_classes, teacher.num_classes)
        chosen = self.loss.choose(_some(items, slice(None), student, teacher))
        self._expected = [student.asked, teacher.asked]
        loss, values = _Pass(self.loss, items, heads[0], heads[1], chosen, self.chunk_size, num_items).run()
        return loss, self.loss.logged(values | chosen)


class ChunkedOutputs(Outputs):
    """`Outputs` for slots that ask for energies and entropies: each a pass of the head over the chunks, kept.

    A pass also fetches what is `expected`, so that in all calls but the first there is one pass or none.
    """

    def __init__(self, states: Tensor, head: Head, chunk_size: int, expected: Iterable[Signal] = ()) -> None:
        self._states, self._head, self._chunk_size, self._expected = states, head, chunk_size, set(expected)
        self._known: dict[Signal, Tensor] = {}
        self.asked: set[Signal] = set()

    @property
    def logits(self) -> Tensor:
        raise ValueError(
            "this slot reads logits itself, which loss_chunk_size cannot serve: ask for items.teacher.energy(T) or "
            "items.teacher.entropy(T) (or the student's), or set loss_chunk_size 0"
        )

    def energy(self, temperature: float) -> Tensor:
        return self._signal("energy", temperature)

    def entropy(self, temperature: float) -> Tensor:
        return self._signal("entropy", temperature)

    @property
    def num_classes(self) -> int:
        return self._head.num_classes(self._states)

    def _signal(self, name: str, temperature: float) -> Tensor:
        signal = (name, temperature)
        self.asked.add(signal)
        if signal not in self._known:
            self._fetch((self._expected | {signal}) - self._known.keys())
        return self._known[signal]

    @torch.no_grad()
    def _fetch(self, wanted: set[Signal]) -> None:
        count = len(self._states)
        for rows in _slices(count, self._chunk_size):
            start = rows.start
            for logits in _blocks(self._head(self._states[rows])):
                block = slice(start, start + len(logits))
                start = block.stop
                said = {s: getattr(signals, s[0])(signals.upcast(logits), s[1]) for s in wanted}
                _keep(self._known, said, block, count)


@dataclass
class _Pass:
    """One pass over the chunks, once every item's temperature and weight is chosen."""

    loss: DistillationLoss
    items: HiddenItems
    student_head: Head
    teacher_head: Head
    chosen: dict[str, Tensor]
    chunk_size: int
    num_items: Tensor | int | None

    def run(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, with its gradients attached, and each item's parts [N]."""
        objective = self.loss.objective
        trained = objective.parameters() if isinstance(objective, nn.Module) else ()
        parameters = [p for p in trained if p.requires_grad]
        learned = {k: t for k, t in self.chosen.items() if t.requires_grad}
        inputs = [self.items.student, *self.student_head.parameters, *parameters, *learned.values()]
        wanted = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        found = [torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in inputs if wanted]
        with torch.no_grad():
            values: dict[str, Tensor] = {}
            for rows in _slices(len(self.items), self.chunk_size):
                self._chunk(rows, found if wanted else None, parameters, values)
            loss = self._reduce(values)
        return (_Known.apply(loss, found, *inputs) if wanted else loss), values

    def _chunk(
        self, rows: slice, found: list[Tensor] | None, parameters: list[nn.Parameter], values: dict[str, Tensor]
    ) -> None:
        """The chunk's parts go into `values`, its gradients into `found`, in the order of `run`'s inputs."""
        heads_own = 1 + len(self.student_head.parameters)
        hidden = self.items.student[rows]
        if found is None:
            logits = self.student_head(hidden)
        else:
            logits, backward = self.student_head.with_backward(hidden, found[1:heads_own])
        taught = self.teacher_head(self.items.teacher[rows]) if self.chosen else logits
        start = rows.start
        for z, z_teacher in zip(_blocks(logits), _blocks(taught), strict=True):
            block = slice(start, start + len(z))
            start = block.stop
            if found is None:
                part = self._per_item(block, z, z_teacher, {k: t[block] for k, t in self.chosen.items()})
            else:
                part = self._learn(block, z, z_teacher, found[heads_own:], parameters)
            _keep(values, part, block, len(self.items))
        if found is not None:
            found[0][rows] = backward(logits)  # by now the gradient

    def _learn(
        self, rows: slice, logits: Tensor, taught: Tensor, others: list[Tensor], parameters: list[nn.Parameter]
    ) -> dict[str, Tensor]:
        """The block's parts; the logits' gradient overwrites them, those of parameters and choices join `others`."""
        others = [*others[: len(parameters)], *(x[rows] for x in others[len(parameters) :])]
        z = signals.upcast(logits).detach().requires_grad_()
        chosen = {k: t[rows].detach().requires_grad_(t.requires_grad) for k, t in self.chosen.items()}
        with torch.enable_grad():
            values = self._per_item(rows, z, taught, chosen)
            share = self._reduce(values)
        learned = [t for t in chosen.values() if t.requires_grad]
        of_logits, *of_others = gradients(share, [z, *parameters, *learned])
        logits.copy_(of_logits)
        for total, gradient in zip(others, of_others, strict=True):
            total.add_(gradient)
        return {name: v.detach() for name, v in values.items()}

    def _per_item(self, rows: slice, logits: Tensor, taught: Tensor, chosen: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = Outputs(signals.upcast(logits)), Outputs(signals.upcast(taught))
        return self.loss.per_item(_some(self.items, rows, *outputs), **chosen)

    def _reduce(self, values: dict[str, Tensor]) -> Tensor:
        return self.loss.reduce(values, len(self.items), self.num_items)


class _Known(torch.autograd.Function):
    """A number whose gradients are known already: backward multiplies them by what comes in.

    The inputs are the leaves' own tensors, so each parameter's gradient is accumulated once, as DDP wants it.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, found: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.found, ctx.dtypes = found, [x.dtype for x in inputs]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.found is None:
            raise RuntimeError("backward through a chunked loss works once: compute the loss again (no retain_graph)")
        found, ctx.found = ctx.found, None
        return None, None, *(x.mul_(incoming).to(d) for x, d in zip(found, ctx.dtypes, strict=True))


def _some(items: HiddenItems, rows: slice, student: Outputs, teacher: Outputs) -> Items:
    return Items(student, teacher, items.labels[rows], items.sample[rows], items.num_samples, items.progress)


def _slices(length: int, size: int) -> list[slice]:
    """0..length in steps; one empty slice for no items, so that a loss and its zero gradients come out all the same."""
    return [slice(start, min(start + size, length)) for start in range(0, max(length, 1), size)]


def _keep(columns: dict[Any, Tensor], part: dict[Any, Tensor], rows: slice, length: int) -> None:
    """Copy each part into its column [length].

    Small tensors left among the large ones of a block would make holes in memory that the next block does not fit in.
    """
    for name, values in part.items():
        if name not in columns:
            columns[name] = values.new_empty(length)
        columns[name][rows] = values


def _blocks(logits: Tensor) -> tuple[Tensor, ...]:
    """The rows of a chunk's logits [n, C], a few at a time on a CPU; a GPU wants them at once."""
    few = max(BLOCK // logits.shape[-1], 1)
    return logits.split(few if logits.device.type == "cpu" else max(len(logits), 1))
