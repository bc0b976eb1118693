"""The flags that name a teacher and a student of masks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from hfkd.models.mask_teacher_arguments import MaskTeacherArguments
from hfkd.models.segmentation import segmentation_network, segmentation_teacher, set_batch_norm_momentum


@dataclass
class SegmentationNetworkArguments(MaskTeacherArguments):
    """Teacher and student: names of torchvision's networks, Hub ids or folders of transformers, or module:function."""

    student_name: str = field(
        default="lraspp_mobilenet_v3_large",
        metadata={"help": "Student: a name of torchvision's, a Hub id, a folder, or module:function."},
    )
    student_checkpoint: str | None = field(default=None, metadata={"help": "Weights the student starts from."})
    teacher_name: str | None = field(
        default=None, metadata={"help": "Teacher, named as the student; with kd_weight 0 none is needed."}
    )
    new_head: bool = field(default=False, metadata={"help": "Give a stored student of other classes a fresh head."})
    auxiliary_head: bool = field(default=False, metadata={"help": "Build torchvision's student with its second head."})
    batch_norm_momentum: float | None = field(
        default=None,
        metadata={
            "help": "Momentum of the student's batch norms. torchvision's MobileNetV3 has 0.01: in a run of a few "
            "hundred steps its running statistics lag, and it evaluates far below what it learnt. 0.1 is PyTorch's."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_norm_momentum is not None and not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(f"batch_norm_momentum={self.batch_norm_momentum} must be in (0, 1]")

    def student(self, num_labels: int, label_names: Sequence[str] | None) -> nn.Module:
        more = {"auxiliary_head": self.auxiliary_head, "new_head": self.new_head}
        network = segmentation_network(self.student_name, num_labels, self.student_checkpoint, label_names, **more)
        if self.batch_norm_momentum is not None:
            set_batch_norm_momentum(network, self.batch_norm_momentum)
        return network

    def teacher(self, num_labels: int) -> nn.Module:
        """Raises ValueError where none is named."""
        if self.teacher_name is None:
            raise ValueError(
                "there is no teacher: pass --teacher_name, or --kd_weight 0 --ce_weight 1 for labels alone"
            )
        return segmentation_teacher(self.teacher_name, num_labels, self.teacher_checkpoint)
