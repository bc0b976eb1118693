"""The flags that define a teacher and a student for image classification."""

from dataclasses import dataclass

from hfkd.models.teacher_view_arguments import TeacherViewArguments
from hfkd.utils.flags import flag

OF_TRAINED_NETWORKS = (
    *("teacher_checkpoint", "student_checkpoint", "student_projector"),
    *("teacher_classes", "teacher_image_size"),
)


@dataclass
class NetworkArguments(TeacherViewArguments):
    """Teacher and student. The defaults are a common pair of the CIFAR-100 literature."""

    teacher_name: list[str] = flag(
        lambda: ["cifar_wrn_40_2"], "One or more teachers: timm names, Hub ids or saved folders."
    )
    teacher_checkpoint: list[str] | None = flag(None, "File with the weights of each teacher: .pth, .safetensors.")
    student_name: str = flag("cifar_wrn_16_2", "Student: a timm name, a Hub id or a folder.")
    student_checkpoint: str | None = flag(None, "File with the student's initial weights.")
    student_projector: int | None = flag(
        None, "Insert a linear layer with this many outputs before the student's classifier (lsh)."
    )
    mutual_learning: bool = flag(
        False, "Train the teacher together with the student, from random weights (DML, recipes/dml.py)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in OF_TRAINED_NETWORKS if vars(self)[name]]
        if self.mutual_learning and given:
            raise ValueError(
                f"mutual_learning trains all networks from random weights, but {given[0]} is set: leave one of them out"
            )
