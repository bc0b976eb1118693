"""The flags that say of a teacher of masks what its files do not."""

from dataclasses import dataclass, field, fields
from typing import Any

from hfkd.models.inputs import InputSpec


@dataclass(kw_only=True)
class MaskTeacherArguments:
    """How a segmentation teacher is loaded. Raises ValueError for settings that do not go together."""

    teacher_checkpoint: str | None = field(default=None, metadata={"help": "Weights of the teacher."})
    teacher_classes: list[int] | None = field(
        default=None,
        metadata={"help": "Where the teacher has other classes: which of its outputs is each class of the data."},
    )
    teacher_mean: list[float] | None = field(
        default=None, metadata={"help": "Mean of each channel that the teacher wants, where it does not say."}
    )
    teacher_std: list[float] | None = field(default=None, metadata={"help": "The standard deviation likewise."})
    teacher_size: list[int] | None = field(
        default=None, metadata={"help": "Height and width that the teacher wants its images in; unset: as they come."}
    )

    def __post_init__(self) -> None:
        if (self.teacher_mean is None) != (self.teacher_std is None):
            raise ValueError("teacher_mean and teacher_std go together: give both, or none")
        if self.teacher_size is not None and (len(self.teacher_size) != 2 or min(self.teacher_size) < 1):
            raise ValueError(f"teacher_size={self.teacher_size} must be a height and a width")
        if self.teacher_size is not None and self.teacher_mean is None:
            raise ValueError("teacher_size needs teacher_mean and teacher_std too: they say together what it wants")

    @property
    def describes_teacher(self) -> bool:
        """Whether any of these flags is given."""
        return any(getattr(self, one.name) for one in fields(MaskTeacherArguments))

    @property
    def wanted(self) -> InputSpec | None:
        """What the teacher wants to see, where it is said."""
        if self.teacher_mean is None or self.teacher_std is None:
            return None
        size: Any = None if self.teacher_size is None else tuple(self.teacher_size)
        return InputSpec(tuple(self.teacher_mean), tuple(self.teacher_std), size)
