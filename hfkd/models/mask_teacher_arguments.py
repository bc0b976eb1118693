"""The flags that describe a segmentation teacher beyond its files."""

from dataclasses import dataclass, fields
from typing import Any

from hfkd.models.inputs import InputSpec
from hfkd.models.teacher_view_arguments import TeacherClassesArguments
from hfkd.utils.flags import flag


@dataclass(kw_only=True)
class MaskTeacherArguments(TeacherClassesArguments):
    """How a segmentation teacher is loaded. Raises ValueError for conflicting settings."""

    teacher_checkpoint: str | None = flag(None, "File with the teacher's weights.")
    teacher_mean: list[float] | None = flag(
        None, "Mean of each channel in the teacher's normalisation, if its files do not contain it."
    )
    teacher_std: list[float] | None = flag(None, "Standard deviation of each channel, likewise.")
    teacher_size: list[int] | None = flag(None, "Height and width of the teacher's images; unset: not resized.")

    def __post_init__(self) -> None:
        if (self.teacher_mean is None) != (self.teacher_std is None):
            raise ValueError("only one of teacher_mean and teacher_std is given: pass both, or neither")
        if self.teacher_size is not None and (len(self.teacher_size) != 2 or min(self.teacher_size) < 1):
            raise ValueError(f"teacher_size={self.teacher_size} must be a height and a width of 1 or more")
        if self.teacher_size is not None and self.teacher_mean is None:
            raise ValueError(f"teacher_size={self.teacher_size} needs teacher_mean and teacher_std too: pass all three")

    @property
    def describes_teacher(self) -> bool:
        """Whether any of these flags is given."""
        return any(getattr(self, one.name) for one in fields(MaskTeacherArguments))

    @property
    def wanted(self) -> InputSpec | None:
        """The teacher's input normalisation and size, if given."""
        if self.teacher_mean is None or self.teacher_std is None:
            return None
        size: Any = None if self.teacher_size is None else tuple(self.teacher_size)
        return InputSpec(tuple(self.teacher_mean), tuple(self.teacher_std), size)
