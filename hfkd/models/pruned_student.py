"""The flags of a student made of some of its teacher's layers."""

from dataclasses import dataclass, fields
from typing import get_args

from transformers import PreTrainedModel

from hfkd.models.pruning import How, prune_layers
from hfkd.utils.flags import flag


@dataclass
class PrunedStudentArguments:
    """A student made of some of its teacher's layers. Raises ValueError for conflicting settings."""

    student_init: str = flag(
        "own", "own: the student's own weights. teacher: the teacher's weights, with its layers student_layers."
    )
    student_layers: list[int] | None = flag(
        None, "The teacher's layers that the student keeps: their number (6), or their indices from 0 (0 2 5)."
    )
    student_layers_from: str = flag(
        "uniform", "The layers to keep, if student_layers is a number: uniform (with first and last), first, last."
    )

    def __post_init__(self) -> None:
        if self.student_init not in ("own", "teacher"):
            raise ValueError(f"student_init={self.student_init!r}: pass 'own' or 'teacher'")
        if self.student_layers_from not in get_args(How):
            raise ValueError(f"student_layers_from={self.student_layers_from!r}: pass one of {list(get_args(How))}")
        if self.student_layers_from != "uniform" and len(self.student_layers or ()) != 1:
            raise ValueError(
                f"student_layers_from={self.student_layers_from!r} chooses as many layers as student_layers says, and "
                f"that is {self.student_layers}: give one number, or leave student_layers_from out"
            )
        if self.student_init == "teacher" and not self.student_layers:
            raise ValueError(
                "student_init='teacher' without student_layers would be the teacher itself: set student_layers"
            )

    def teacher_as_student(self, given: str, teacher: str | None, fresh: str | None) -> str:
        """The student's name: `given`, or the teacher's with student_init=teacher. fresh: a flag for random weights."""
        if self.student_init == "own":
            return given
        default = next(f.default for f in fields(self) if f.name == "student_name_or_path")
        if given not in (default, teacher):
            raise ValueError(
                f"student_init='teacher' takes the teacher's weights, but student_name_or_path={given!r} is set: "
                "leave one out"
            )
        if teacher is None:
            raise ValueError("student_init='teacher' needs a teacher to take layers from: set teacher_name_or_path")
        if fresh is not None:
            raise ValueError(f"student_init='teacher' takes the teacher's weights, but {fresh} is set: leave one out")
        return teacher

    def pruned(self, model: PreTrainedModel) -> PreTrainedModel:
        """`model` with the layers in `student_layers`."""
        if not self.student_layers:
            return model
        keep = self.student_layers[0] if len(self.student_layers) == 1 else self.student_layers
        return prune_layers(model, keep, self.student_layers_from)  # type: ignore[arg-type]  # checked above
