"""The flags that define a teacher and a student for object detection."""

from dataclasses import dataclass
from typing import Any

from torchvision.models.detection import FasterRCNN

from hfkd.models.detection import detector
from hfkd.utils.flags import at_least_one, flag


@dataclass
class DetectionNetworkArguments:
    """Faster R-CNN as teacher and student: backbones of torchvision or timm, or torchvision's detectors by name."""

    student_name: str = flag(
        "resnet18", "Student: a backbone from torchvision or timm, or a detector from torchvision (fasterrcnn_...)."
    )
    student_checkpoint: str | None = flag(None, "File with initial weights of the whole student.")
    student_backbone_checkpoint: str | None = flag(
        None, "File with a classifier's weights for the student's backbone; pretrained: the published ones."
    )
    student_levels: list[int] = flag(
        lambda: [1, 2, 3, 4], "Stages of the student's backbone under the feature pyramid."
    )
    student_fpn_channels: int = flag(256, "Channels of the student's feature pyramid.")
    student_head_size: int = flag(1024, "Width of the student's two layers on each proposal.")
    teacher_name: str | None = flag(None, "Teacher, named like the student; not needed with kd_weight 0.")
    teacher_checkpoint: str | None = flag(
        None, "File with the teacher's weights; torchvision: the published ones for COCO (fasterrcnn_...)."
    )
    teacher_levels: list[int] = flag(
        lambda: [1, 2, 3, 4], "Stages of the teacher's backbone under the feature pyramid."
    )
    teacher_fpn_channels: int = flag(256, "Channels of the teacher's feature pyramid.")
    teacher_head_size: int = flag(1024, "Width of the teacher's two layers on each proposal.")
    min_size: int = flag(800, "Both networks resize an image so that its shorter side is this.")
    max_size: int = flag(1333, "The longer side of a resized image is at most this.")
    anchor_size: int = flag(32, "Side of the anchors on the finest map, doubled at each coarser map.")
    proposals: int = flag(512, "Number of proposals per image that are trained on.")
    frozen_batch_norm: bool = flag(True, "Freeze the batch norms of the backbones.")
    frozen_stages: int = flag(0, "Number of stages of the backbones that are frozen, with the stem.")

    def __post_init__(self) -> None:
        sizes = ("min_size", "max_size", "anchor_size", "proposals")
        widths = ("student_fpn_channels", "student_head_size", "teacher_fpn_channels", "teacher_head_size")
        at_least_one(self, *sizes, *widths)
        for name in ("student_levels", "teacher_levels"):
            levels = getattr(self, name)
            if not levels or levels != list(range(levels[0], levels[0] + len(levels))) or levels[0] < 1:
                raise ValueError(f"{name}={levels} must be consecutive stages, such as 1 2 3 4")

    def student(self, num_classes: int) -> FasterRCNN:
        weights = self.student_checkpoint, self.student_backbone_checkpoint
        return detector(self.student_name, num_classes, *weights, **self._settings("student"))

    def teacher(self, num_classes: int) -> FasterRCNN:
        """The teacher. Raises ValueError if none is named, or its weights would be random."""
        if self.teacher_name is None:
            raise ValueError(
                "there is no teacher: pass --teacher_name, or --kd_weight 0 --ce_weight 1 to train on labels only"
            )
        if self.teacher_checkpoint is None:
            raise ValueError(
                f"the teacher {self.teacher_name!r} would have random weights: pass its checkpoint, a file, or "
                "torchvision for the published weights of torchvision's own detectors"
            )
        return detector(self.teacher_name, num_classes, self.teacher_checkpoint, None, **self._settings("teacher"))

    def _settings(self, role: str) -> dict[str, Any]:
        own = {name: getattr(self, f"{role}_{name}") for name in ("levels", "fpn_channels", "head_size")}
        shared = ("min_size", "max_size", "anchor_size", "proposals", "frozen_batch_norm", "frozen_stages")
        found = own | {name: getattr(self, name) for name in shared}
        return found if role == "student" else found | {"frozen_stages": 0}  # nothing of a teacher is trained
