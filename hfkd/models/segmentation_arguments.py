"""The flags that define a teacher and a student for semantic segmentation."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from hfkd.models.mask_teacher_arguments import MaskTeacherArguments
from hfkd.models.segmentation import segmentation_network, segmentation_teacher, set_batch_norm_momentum
from hfkd.utils.flags import flag


@dataclass
class SegmentationNetworkArguments(MaskTeacherArguments):
    """Teacher and student: torchvision names, Hub ids or folders of transformers models, or module:function."""

    student_name: str = flag(
        "lraspp_mobilenet_v3_large", "Student: a torchvision name, a Hub id, a folder, or module:function."
    )
    student_checkpoint: str | None = flag(None, "File with the student's initial weights.")
    teacher_name: str | None = flag(None, "Teacher, named like the student; not needed with kd_weight 0.")
    new_head: bool = flag(False, "Replace the head of a stored student by a new one for these classes.")
    auxiliary_head: bool = flag(False, "Build torchvision's student with its auxiliary head.")
    batch_norm_momentum: float | None = flag(
        None,
        "Momentum of the student's batch norms. torchvision's MobileNetV3 has 0.01: in a run of a few "
        "hundred steps its running statistics are outdated, and its accuracy in evaluation far too low. 0.1 "
        "is PyTorch's default.",
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
        """The teacher. Raises ValueError if none is named."""
        if self.teacher_name is None:
            raise ValueError(
                "there is no teacher: pass --teacher_name, or --kd_weight 0 --ce_weight 1 to train on labels only"
            )
        return segmentation_teacher(self.teacher_name, num_labels, self.teacher_checkpoint)
