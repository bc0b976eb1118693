"""The flags that name a teacher and a student that detect objects."""

from dataclasses import dataclass, field
from typing import Any

from torchvision.models.detection import FasterRCNN

from hfkd.models.detection import detector
from hfkd.utils.counts import at_least_one


@dataclass
class DetectionNetworkArguments:
    """Faster R-CNN as teacher and student: backbones of torchvision or timm, or torchvision's detectors by name."""

    student_name: str = field(
        default="resnet18",
        metadata={"help": "Student: a backbone of torchvision's or timm's, or torchvision's fasterrcnn_..."},
    )
    student_checkpoint: str | None = field(default=None, metadata={"help": "Weights the whole student starts from."})
    student_backbone_checkpoint: str | None = field(
        default=None,
        metadata={"help": "Weights of a classifier for its backbone; pretrained: those that are published."},
    )
    student_levels: list[int] = field(
        default_factory=lambda: [1, 2, 3, 4], metadata={"help": "Stages of its backbone under the feature pyramid."}
    )
    student_fpn_channels: int = field(default=256, metadata={"help": "Channels of its feature pyramid."})
    student_head_size: int = field(default=1024, metadata={"help": "Width of its two layers on each proposal."})
    teacher_name: str | None = field(
        default=None, metadata={"help": "Teacher, named as the student; with kd_weight 0 none is needed."}
    )
    teacher_checkpoint: str | None = field(
        default=None,
        metadata={"help": "Weights of the teacher; torchvision: those that are published for COCO (fasterrcnn_...)."},
    )
    teacher_levels: list[int] = field(
        default_factory=lambda: [1, 2, 3, 4], metadata={"help": "As student_levels, of the teacher."}
    )
    teacher_fpn_channels: int = field(default=256, metadata={"help": "As student_fpn_channels, of the teacher."})
    teacher_head_size: int = field(default=1024, metadata={"help": "As student_head_size, of the teacher."})
    min_size: int = field(default=800, metadata={"help": "Both resize an image so that its shorter side is this."})
    max_size: int = field(default=1333, metadata={"help": "And its longer side no longer than this."})
    anchor_size: int = field(default=32, metadata={"help": "Side of the anchors on the finest map, doubled with each."})
    proposals: int = field(default=512, metadata={"help": "Proposals of each image that are trained on."})
    frozen_batch_norm: bool = field(default=True, metadata={"help": "Keep the backbones' batch norms as they are."})
    frozen_stages: int = field(
        default=0, metadata={"help": "Train neither the backbones' stem nor so many of their stages."}
    )

    def __post_init__(self) -> None:
        sizes = ("min_size", "max_size", "anchor_size", "proposals")
        widths = ("student_fpn_channels", "student_head_size", "teacher_fpn_channels", "teacher_head_size")
        at_least_one(self, *sizes, *widths)
        for name in ("student_levels", "teacher_levels"):
            levels = getattr(self, name)
            if not levels or levels != list(range(levels[0], levels[0] + len(levels))) or levels[0] < 1:
                raise ValueError(f"{name}={levels} must be stages one after the other, such as 1 2 3 4")

    def student(self, num_classes: int) -> FasterRCNN:
        weights = self.student_checkpoint, self.student_backbone_checkpoint
        return detector(self.student_name, num_classes, *weights, **self._settings("student"))

    def teacher(self, num_classes: int) -> FasterRCNN:
        """Raises ValueError where none is named, or its weights would be random."""
        if self.teacher_name is None:
            raise ValueError(
                "there is no teacher: pass --teacher_name, or --kd_weight 0 --ce_weight 1 for labels alone"
            )
        if self.teacher_checkpoint is None:
            raise ValueError(
                f"the teacher {self.teacher_name!r} would have random weights: give its checkpoint, a file or, of "
                "torchvision's own detectors, the word torchvision"
            )
        return detector(self.teacher_name, num_classes, self.teacher_checkpoint, None, **self._settings("teacher"))

    def _settings(self, role: str) -> dict[str, Any]:
        own = {name: getattr(self, f"{role}_{name}") for name in ("levels", "fpn_channels", "head_size")}
        shared = ("min_size", "max_size", "anchor_size", "proposals", "frozen_batch_norm", "frozen_stages")
        return own | {name: getattr(self, name) for name in shared}
