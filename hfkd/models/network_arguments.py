"""The flags that name a teacher and a student."""

from dataclasses import dataclass, field


@dataclass
class NetworkArguments:
    """Teacher and student. The defaults are a pair that is common in the CIFAR-100 literature."""

    teacher_name: list[str] = field(
        default_factory=lambda: ["cifar_wrn_40_2"],
        metadata={"help": "Teacher, or several of them: timm names, Hub ids or saved folders."},
    )
    teacher_checkpoint: list[str] | None = field(
        default=None, metadata={"help": "Weights of each teacher: .pth, .safetensors."}
    )
    student_name: str = field(
        default="cifar_wrn_16_2", metadata={"help": "Student: a timm name, a Hub id or a folder."}
    )
    student_checkpoint: str | None = field(default=None, metadata={"help": "Weights the student starts from."})
    student_projector: int | None = field(
        default=None,
        metadata={"help": "Put a linear layer of this many outputs before the student's classifier (lsh)."},
    )
    mutual_learning: bool = field(
        default=False,
        metadata={"help": "The teacher learns too, beside the student and from random weights (DML, recipes/dml.py)."},
    )

    def __post_init__(self) -> None:
        given = [name for name in ("teacher_checkpoint", "student_checkpoint", "student_projector") if vars(self)[name]]
        if self.mutual_learning and given:
            raise ValueError(f"mutual_learning trains all networks from random weights: leave {given[0]} out")
