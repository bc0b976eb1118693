"""Several teachers, of which each row names its own.

B rows of a batch, L length, N target tokens, K teachers, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from hfkd.data.teacher_columns import ROW_TEACHER, WHICH_TEACHER
from hfkd.losses.outputs import Outputs
from hfkd.models.calling import class_dim
from hfkd.teachers.ensemble import TeacherEnsemble, Unlike
from hfkd.teachers.frozen import FrozenTeacher
from hfkd.utils.messages import some
from hfkd.utils.targets import Targets

MEDIA = frozenset({"pixel_values", "pixel_values_videos", "input_features", "input_values"})


class TeacherByRow(TeacherEnsemble):
    """A teacher for each row: that which the row names in its column `teacher`, as a key of `teachers`.

    For example specialists for mathematics and for code, or one for each domain of images. Each network runs on its own
    rows only, and the loss is as if a single teacher had answered: with any objective, temperature and weighting, and
    with thresholds that are fitted over all of them. They need the same classes in the same order, or one tokenizer.
    Raises ValueError for fewer than two teachers, and for a batch without the column or whose inputs are not one for
    each row (images within texts, flattened rows).
    """

    def __init__(self, teachers: Mapping[Any, nn.Module]) -> None:
        if len(teachers) < 2:
            raise ValueError(
                f"a dict of {len(teachers)} teachers: name two or more, or pass a single teacher without a dict"
            )
        self._refuse_others(teachers)
        super().__init__([one if isinstance(one, FrozenTeacher) else FrozenTeacher(one) for one in teachers.values()])
        self.names = tuple(teachers)
        self.vocabulary: int | None = None  # the size to which all vocabularies are cut

    @staticmethod
    def _refuse_others(teachers: Mapping[Any, Any]) -> None:
        for name, one in teachers.items():
            if not isinstance(one, nn.Module) or isinstance(one, TeacherEnsemble):
                raise ValueError(
                    f"the teacher {name!r} is a {type(one).__name__}: each row has one teacher that runs a network, so "
                    "pass a network, or a FrozenTeacher around it"
                )

    @property
    def answers(self) -> int:
        return 1

    def made_of(self, members: Sequence[FrozenTeacher]) -> "TeacherByRow":
        made = TeacherByRow(dict(zip(self.names, members, strict=True)))
        made.vocabulary = self.vocabulary
        return made

    def collator(self, collate: Callable[..., Any]) -> Callable[..., Any]:
        return collate if isinstance(collate, NumberedTeachers) else NumberedTeachers(collate, self.names)

    def reads(self, inputs: Mapping[str, Any]) -> bool:
        return WHICH_TEACHER in inputs

    def probes(self, batch: Mapping[str, Any]) -> Iterator[tuple[tuple[nn.Module, ...], dict[str, Any]]]:
        for number, network in enumerate(self.networks) if self.reads(batch) else ():
            yield (network,), {**batch, WHICH_TEACHER: torch.full_like(batch[WHICH_TEACHER], number)}

    @torch.no_grad()
    def forward(
        self,
        last_hidden: bool = False,
        each: bool = False,
        at: tuple[Targets, int | None, bool] | None = None,
        **inputs: Any,
    ) -> Tensor:
        """Logits [B, C] or [B, L, V], each row's from its own teacher; [N, V] with `at`, see `at_targets`."""
        if at is None:
            return super().forward(last_hidden, each, **inputs)
        with self.frozen():
            parts = []
            for teacher, rows, its in self._shares(inputs):
                targets, place = at[0].of_rows(rows)
                parts.append((place, teacher.at_targets(its, targets, *at[1:])[0].logits))
            return _joined(parts, len(at[0]))

    def at_targets(
        self, inputs: Mapping[str, Any], targets: Targets, num_classes: int | None, on_heads: bool
    ) -> tuple[Outputs, Tensor | None]:
        logits = self(at=(targets, num_classes, on_heads), **inputs)
        return Outputs(logits), logits

    def _outputs(self, last_hidden: bool, each: bool, inputs: Mapping[str, Any]) -> Tensor:
        if last_hidden:
            return super()._outputs(last_hidden, each, inputs)
        parts, count = [], 0
        for teacher, rows, its in self._shares(inputs):
            logits = teacher._outputs(False, False, its)
            if self.vocabulary is not None and logits.ndim < 4:
                logits = logits[..., : self.vocabulary]
            parts.append((torch.tensor(rows, device=logits.device), logits))
            count += len(rows)
        return _joined(parts, count)

    def _shares(self, inputs: Mapping[str, Any]) -> Iterator[tuple[FrozenTeacher, list[int], dict[str, Any]]]:
        """Each teacher with rows in the batch, the numbers of these rows, and their inputs."""
        which = inputs.get(WHICH_TEACHER)
        if not isinstance(which, Tensor):
            raise Unlike(
                f"the batch does not say which teacher each row has, among {some(map(str, self.names))}: name one in "
                f"each row's column {ROW_TEACHER!r}, and let a data_collator of your own keep the order of the rows, "
                f"or give {WHICH_TEACHER!r} (the number of each row's teacher, from 0)"
            )
        numbers = which.tolist()
        if not all(0 <= number < len(self.teachers) for number in numbers):
            raise Unlike(f"{WHICH_TEACHER}={numbers} must be numbers of the {len(self.teachers)} teachers, from 0")
        labels = inputs.get("labels")
        if isinstance(labels, Tensor) and len(labels) != len(numbers):  # of several views of an image, for no teacher
            inputs = {name: value for name, value in inputs.items() if name != "labels"}
        for name, value in inputs.items():
            self._refuse_other_shape(name, value, len(numbers), inputs)
        for number, teacher in enumerate(self.teachers):
            rows = [row for row, its in enumerate(numbers) if its == number]
            if rows:
                yield teacher, rows, _of_rows(inputs, rows)

    @staticmethod
    def _refuse_other_shape(name: str, value: Any, count: int, inputs: Mapping[str, Any]) -> None:
        if not isinstance(value, Tensor):
            return
        if name in MEDIA and "input_ids" in inputs:
            raise Unlike(
                f"the batch has {name} beside its tokens, and a row may have several images or sounds, or none, so "
                "that they cannot be divided among the rows' teachers: train with one teacher at a time"
            )
        if value.shape[:1] != (count,) or (name == "position_ids" and value.ndim > 2):
            raise Unlike(
                f"the batch's {name} of the shape {tuple(value.shape)} cannot be divided among the teachers of its "
                f"{count} rows: pad rows, in place of joining them to one"
            )

    def extra_repr(self) -> str:
        return f"names={list(self.names)}"


@dataclass
class NumberedTeachers:
    """`collate`, with the number of each row's teacher, [B], from the rows' column `teacher`.

    A collator that puts rows into another order gives the numbers itself. Unless each row names a teacher the batch is
    as before: evaluation may not need it. Raises ValueError for a name that is not one of `names`.
    """

    collate: Callable[..., Any]
    names: tuple[Any, ...]

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        if isinstance(rows, Mapping) or not isinstance(batch, Mapping) or WHICH_TEACHER in batch:
            return batch
        named = [row.get(ROW_TEACHER) if isinstance(row, Mapping) else None for row in rows]
        if any(one is None for one in named):
            return batch
        return {**batch, WHICH_TEACHER: torch.tensor([number_of(one, self.names) for one in named])}


def number_of(name: Any, names: Sequence[Any]) -> int:
    """The number of the teacher that a row names."""
    name = name.item() if hasattr(name, "item") else name
    if name not in names:
        raise ValueError(
            f"a row has {name!r} in its column {ROW_TEACHER!r}, but the teachers are {list(names)}: name one of these "
            "in each row"
        )
    return names.index(name)


def _of_rows(inputs: Mapping[str, Any], rows: list[int]) -> dict[str, Any]:
    """The entries of these rows; what is no tensor, such as the host's targets, is of all rows and left out."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    whole = len(rows) == len(tensors[WHICH_TEACHER])
    return {name: value if whole else value[torch.tensor(rows, device=value.device)] for name, value in tensors.items()}


def _joined(parts: list[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """Logits [count, ...] of parts (their places, their logits) that have equally many classes."""
    shapes = sorted({tuple(logits.shape[1:]) for _, logits in parts})
    if len(shapes) > 1:
        classes = sorted({logits.shape[class_dim(logits)] for _, logits in parts})
        said = f"{classes} classes" if len(classes) > 1 else f"outputs of the shapes {shapes}"
        raise Unlike(
            f"the teachers of a batch's rows have {said}: use teachers with the same classes, in the same order, whose "
            "outputs have one size"
        )
    first = parts[0][1]
    if len(parts) == 1:
        return first
    dtype = reduce(torch.promote_types, (logits.dtype for _, logits in parts))
    joined = torch.empty(count, *first.shape[1:], dtype=dtype, device=first.device)
    for place, logits in parts:
        joined.index_copy_(0, place.to(joined.device), logits.to(joined))
    return joined
