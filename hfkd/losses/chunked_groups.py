"""The loss over chunks of token groups, for a student and a teacher with different tokenizers.

N groups, n and m target tokens of student and teacher, H hidden size (of either).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from hfkd.losses.chunked import CHUNK_SIZE, Pass, refuse_unserved
from hfkd.losses.chunked_outputs import ChunkedOutputs, Signal, keep
from hfkd.losses.counts import Counts, Number
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.groups import GroupOutputs, group_means
from hfkd.losses.heads import head_of
from hfkd.losses.items import Items, group_items
from hfkd.losses.outputs import Outputs
from hfkd.losses.rescaling import Rescaling
from hfkd.losses.sources import HeadSource
from hfkd.utils.token_groups import GroupedTokens, Groups


@dataclass(frozen=True)
class HiddenGroups:
    """The arguments of `group_items` before the logits are computed.

    student [n, H], teacher [m, H]: the hidden states of each network's target tokens, which its output head reads.
    labels: the labels of both. same, progress: see `group_items`. rest, index, seed, step: see `Items`."""

    student: Tensor
    teacher: Tensor
    labels: tuple[Tensor, Tensor]
    groups: Groups
    same: tuple[Tensor | None, Tensor | None] = (None, None)
    progress: float | None = 0.0
    rest: Tensor | None = None
    index: Tensor | None = None
    seed: int = 0
    step: int = 0

    @property
    def num_samples(self) -> int:
        return self.groups.num_rows

    def items(self, student: Outputs, teacher: Outputs) -> Items:
        """The items of all groups, with these outputs."""
        hidden = Outputs(self.student), Outputs(self.teacher)
        items = group_items(*hidden, self.groups, self.labels, progress=self.progress)
        place: dict[str, Any] = {"index": self.index, "seed": self.seed, "step": self.step}
        return replace(items, student=student, teacher=teacher, rest=self.rest, **place)


class Piece(NamedTuple):
    """Consecutive groups and the target tokens that belong to them; of the student, all tokens up to the next piece."""

    groups: slice
    student: slice
    teacher: slice


class ChunkedGroupLoss:
    """`DistillationLoss` on groups of tokens, with logits for about `chunk_size` tokens of each network at a time.

    Same loss, parts and gradients. A chunk holds whole groups, at least one. Temperatures and weights are computed
    first, from energies and entropies for which each head needs one more pass if they are read. Otherwise like
    `ChunkedLoss`, with the same ValueErrors.
    """

    def __init__(
        self,
        loss: DistillationLoss,
        chunk_size: int = CHUNK_SIZE,
        rescalings: tuple[Rescaling, Rescaling] = (Rescaling(), Rescaling()),
    ) -> None:
        refuse_unserved(loss)
        self.loss, self.chunk_size, self.rescalings = loss, chunk_size, rescalings
        self._expected: list[set[Signal]] = [set(), set()]

    def __call__(
        self,
        hidden: HiddenGroups,
        student_head: nn.Module,
        teacher_head: nn.Module,
        num_items: Counts | Number | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        of_student, of_teacher = self.rescalings
        sources = (
            HeadSource(hidden.student, head_of(student_head, None, of_student)),
            HeadSource(hidden.teacher, head_of(teacher_head, None, of_teacher)),
        )
        sides = hidden.groups.student, hidden.groups.teacher
        outputs = [
            ChunkedGroupOutputs(source, grouped, self.chunk_size, expected)
            for source, grouped, expected in zip(sources, sides, self._expected, strict=True)
        ]
        items = hidden.items(*outputs)
        chosen = self.loss.choose(items)
        self._expected = [one.asked for one in outputs]
        pieces = pieces_of(*sides, len(hidden.labels[0]), self.chunk_size)
        loss, values = GroupPass(self.loss, *sources, chosen, hidden, items, num_items).run(pieces)
        loss = self.loss.with_rest(loss, items, num_items)
        logged = self.loss.logged(values | chosen, items.samples_with_items, items.labelled)
        return loss, logged | self.loss.rest_logged(items)


class ChunkedGroupOutputs(ChunkedOutputs):
    """Energies and entropies of groups: the means over the tokens of one network in each group."""

    def __init__(self, source: HeadSource, grouped: GroupedTokens, chunk_size: int, expected: Iterable[Signal]) -> None:
        super().__init__(source, slice(0, len(source.hidden)), chunk_size, expected)
        self._grouped = grouped

    def energy(self, temperature: float) -> Tensor:
        return group_means(super().energy(temperature), self._grouped)

    def entropy(self, temperature: float) -> Tensor:
        return group_means(super().entropy(temperature), self._grouped)


@dataclass
class GroupPass(Pass):
    """A pass over pieces. `items`: all groups, without logits."""

    hidden: HiddenGroups
    items: Items
    num_items: Counts | Number | None

    def __post_init__(self) -> None:
        whole = self.items
        self.counts = Counts.of(self.num_items, whole.num_labels, len(whole), whole.samples_with_items)

    def add(
        self, chunk: Piece, found: list[Tensor] | None, parameters: list[nn.Parameter], values: dict[str, Tensor]
    ) -> None:
        logits, backward = self.logits(chunk.student, found)
        taught = self.teacher(chunk.teacher)
        part = self.learn(chunk.groups, logits, partial(self._part, chunk, taught), found, parameters)
        labelled = {name: part.pop(name) for name in ("ce",) if name in part}
        keep(values, labelled, chunk.student, len(self.hidden.labels[0]))
        keep(values, part, chunk.groups, len(self.items))
        backward(logits)  # by now the gradient

    def _part(
        self, piece: Piece, taught: Tensor, z: Tensor, chosen: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        items = self._some(piece, self.student.rescale(z), self.teacher.rescale(taught))
        values = self.per_item(items, chosen)
        return self.loss.reduce(values, items, self.counts), values

    def _some(self, piece: Piece, logits: Tensor, taught: Tensor) -> Items:
        """The items of a piece, with its groups and tokens numbered from 0."""
        (labels, its_labels), (same, its_same), groups = self.hidden.labels, self.hidden.same, self.hidden.groups
        mine = groups.student.part(piece.groups, piece.student.start)
        its = groups.teacher.part(piece.groups, piece.teacher.start)
        labels = labels[piece.student]
        share = None if self.items.share is None else self.items.share[piece.groups]
        return replace(
            self.items,
            student=GroupOutputs(logits, None, labels, mine, same),
            teacher=GroupOutputs(taught, None, its_labels[piece.teacher], its, its_same),
            labels=labels,
            sample=self.items.sample[piece.groups],
            share=share,
            tokens=len(labels),
        )

    def total(self, values: dict[str, Tensor]) -> Tensor:
        return self.loss.reduce(values, self.items, self.counts)

    @property
    def labels(self) -> Number:
        return self.counts.labels


def pieces_of(student: GroupedTokens, teacher: GroupedTokens, tokens: int, size: int) -> Iterator[Piece]:
    """Split the groups in order into pieces of at most `size` tokens of either network, and at least one group.

    Each of the student's `tokens` is in exactly one piece; where more than `size` of them lie between two groups, they
    fill pieces without groups.
    """
    mine, its = student.spans(), teacher.spans()
    group = start = 0
    while True:
        upcoming = mine[group][0] if group < len(mine) else tokens
        while upcoming - start > size:
            yield Piece(slice(group, group), slice(start, start + size), slice(0, 0))
            start += size
        if group == len(mine):
            break
        first, group = group, group + 1
        while group < len(mine) and max(mine[group][1] - start, its[group][1] - its[first][0]) <= size:
            group += 1
        stop = mine[group - 1][1]
        yield Piece(slice(first, group), slice(start, stop), slice(its[first][0], its[group - 1][1]))
        start = stop
    if start < tokens or not tokens:
        yield Piece(slice(group, group), slice(start, tokens), slice(0, 0))
