"""The flags that say what a teacher sees, and which of its outputs teach."""

from dataclasses import dataclass

from hfkd.utils.flags import at_least_one, flag


@dataclass(kw_only=True)
class TeacherClassesArguments:
    """Which of a teacher's classes are the data's."""

    teacher_classes: list[int] | None = flag(
        None, "For a teacher with other classes: the index of its output for each class of the data."
    )


@dataclass(kw_only=True)
class TeacherViewArguments(TeacherClassesArguments):
    """How an image classifier teaches data that it was not made for."""

    teacher_image_size: int | None = flag(
        None,
        "Resize the teacher's images to this size, on the device; unset: a teacher of a fixed size gets "
        "that, any other the size of the data.",
    )

    def __post_init__(self) -> None:
        at_least_one(self, "teacher_image_size")
