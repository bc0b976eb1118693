"""An ensemble of teachers.

B images, K teachers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hfkd.models import InputSpec
from hfkd.models.calling import class_dim
from hfkd.teachers.freezing import Freezing
from hfkd.teachers.frozen import FrozenTeacher


class Unlike(ValueError):
    """Teachers whose outputs cannot be joined, or rows that cannot be divided among them."""


class TeacherEnsemble(FrozenTeacher):
    """Several teachers used as one, whose logits are their mean.

    With `each=True` it returns the logits of all K teachers, [K, B, ...], for objectives that combine them themselves.
    """

    def __init__(self, teachers: Sequence[FrozenTeacher]) -> None:
        if len(teachers) < 2:
            raise ValueError(
                f"a list of {len(teachers)} teachers: pass two or more, or a single teacher without a list"
            )
        for teacher in teachers:
            teacher.unfreeze()
        super().__init__(nn.ModuleList(teachers))
        self.unfreeze()
        self.teachers = tuple(teachers)
        self.freezing = Freezing(self.networks)
        self.freeze()

    @property
    def networks(self) -> tuple[nn.Module, ...]:  # type: ignore[override]
        return tuple(one.model for one in self.teachers)

    @property
    def members(self) -> tuple[FrozenTeacher, ...]:
        return self.teachers

    @property
    def answers(self) -> int:
        return len(self.teachers)

    def made_of(self, members: Sequence[FrozenTeacher]) -> "TeacherEnsemble":
        """The same of other `members`, which are prepared for the batches of a trainer."""
        return TeacherEnsemble(members)

    def take_as_given(self) -> None:
        for teacher in self.teachers:
            teacher.take_as_given()

    @contextmanager
    def receiving(self, received: InputSpec | None) -> Iterator[None]:
        with ExitStack() as stack:
            for teacher in self.teachers:
                stack.enter_context(teacher.receiving(received))
            yield

    def _outputs(self, last_hidden: bool, each: bool, inputs: Mapping[str, Any]) -> Tensor:
        """Logits [B, ...], or [K, B, ...] with `each`. Raises ValueError for hidden states."""
        if last_hidden:
            raise ValueError(
                "several teachers have no common hidden states: set loss_chunk_size to 0, or use one teacher"
            )
        logits = [teacher._outputs(False, False, inputs).float() for teacher in self.teachers]
        classes = [one.shape[class_dim(one)] for one in logits]
        if len(set(classes)) > 1:
            raise Unlike(f"the teachers have {classes} classes: use teachers with the same classes, in the same order")
        if len({one.shape for one in logits}) > 1:
            raise Unlike(
                f"the teachers' outputs have the shapes {[tuple(one.shape) for one in logits]}: wrap them in "
                "modules that return outputs of one size"
            )
        return torch.stack(logits) if each else torch.stack(logits).mean(0)
