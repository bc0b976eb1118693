"""The flags that name a teacher and a student of masks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hfkd.models.inputs import InputSpec
from hfkd.models.segmentation import segmentation_network, segmentation_teacher, set_batch_norm_momentum


@dataclass
class SegmentationNetworkArguments:
    """Which network teaches which: names of torchvision, Hub ids or folders of transformers, or module:function."""

    student_name: str = field(
        default="lraspp_mobilenet_v3_large",
        metadata={"help": "Student: a name of torchvision's, a Hub id, a folder, or module:function."},
    )
    student_checkpoint: str | None = field(default=None, metadata={"help": "Weights the student starts from."})
    teacher_name: str | None = field(
        default=None, metadata={"help": "Teacher, named as the student; with kd_weight 0 none is needed."}
    )
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
        if (self.teacher_mean is None) != (self.teacher_std is None):
            raise ValueError("teacher_mean and teacher_std go together: give both, or none")
        if self.teacher_size is not None and (len(self.teacher_size) != 2 or min(self.teacher_size) < 1):
            raise ValueError(f"teacher_size={self.teacher_size} must be a height and a width")
        if self.teacher_size is not None and self.teacher_mean is None:
            raise ValueError("teacher_size needs teacher_mean and teacher_std too: they say together what it wants")
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

    @property
    def wanted(self) -> InputSpec | None:
        """What the teacher wants to see, where it is said."""
        if self.teacher_mean is None or self.teacher_std is None:
            return None
        size: Any = None if self.teacher_size is None else tuple(self.teacher_size)
        return InputSpec(tuple(self.teacher_mean), tuple(self.teacher_std), size)
