"""Numbers for the analysis of segmentation networks, over all labelled pixels, image by image.

B images, C classes, H and W of the labels, h and w of a network's maps, P pixels.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hfkd.evaluation.analysis.samples import divergence, extremes, mean_divergences, mean_of, segments
from hfkd.evaluation.metrics.mean_iou import MeanIoU
from hfkd.losses.functional import entropy, interpolated
from hfkd.tasks.semantic_segmentation import flat_labels
from hfkd.teachers.sampled_items import EvenItems
from hfkd.utils.targets import IGNORED

logger = logging.getLogger(__name__)

OF_TEACHER, OF_STUDENT = ("entropy", "correct"), ("entropy", "correct", "agreement", "kl")


class PixelNumbers:
    """Compares students with their teacher: call `add` for each batch, then `result`.

    Stored per pixel are the teacher's entropy, whether each network is right, and for each student its entropy, its KL
    and whether it agrees with the teacher: 8 bytes, and 16 for each student. Of more than 16,777,216 pixels these are
    of evenly spread ones (`EvenItems`); IoU and accuracy are of all.
    """

    def __init__(
        self, students: Sequence[str], classes: int, label_names: Sequence[str] | None = None, temperature: float = 1.0
    ) -> None:
        self.classes, self.temperature, self.images = classes, temperature, 0
        self.teacher_iou = MeanIoU(classes, label_names)
        self.student_iou = {name: MeanIoU(classes, label_names) for name in students}
        self.held = EvenItems()  # [P, 2 + 4 of each student]

    def add(self, labels: Tensor, teacher: Tensor, students: Mapping[str, Tensor]) -> None:
        """Add labels [B, H, W], with 255 and -100 for no label, and logits [B, C, h, w].

        Raises ValueError for labels out of range, and for NaN or infinite logits.
        """
        for k in range(len(labels)):  # one image at a time: the logits of all pixels take much memory
            one = slice(k, k + 1)
            self._image(labels[one], teacher[one], {name: maps[one] for name, maps in students.items()})
            self.images += 1

    def _image(self, labels: Tensor, teacher: Tensor, students: Mapping[str, Tensor]) -> None:
        flat, labels = flat_labels(labels, None)[0].cpu(), labels.cpu()
        known = flat != IGNORED
        label = flat[known]
        wrong = label[(label < 0) | (label >= self.classes)]
        if len(wrong):
            raise ValueError(
                f"image {self.images} has the label {int(wrong[0])}, but the classes are 0 to {self.classes - 1}: "
                "list all classes (id2label), or mark the pixel as unlabelled with 255"
            )
        taught = self._logits("the teacher", teacher, labels)[known]
        self.teacher_iou.add(taught.argmax(-1)[None], label[None])
        columns = [entropy(taught), taught.argmax(-1) == label]
        for name, maps in students.items():
            seen = self._logits(name, maps, labels)[known]
            predicted = seen.argmax(-1)
            self.student_iou[name].add(predicted[None], label[None])
            columns += [entropy(seen), predicted == label, predicted == taught.argmax(-1)]
            columns += [divergence(taught, seen, self.temperature)]
        self.held.add(torch.stack([column.float() for column in columns], -1))

    def _logits(self, name: str, maps: Tensor, labels: Tensor) -> Tensor:
        """[1, C, h, w] -> [P, C] at the size of the labels."""
        if not maps.isfinite().all():
            raise ValueError(f"{name} gives NaN or infinity for image {self.images}: its training diverged")
        return interpolated(maps.cpu(), labels.shape[-2:])[0].flatten(1).T

    def result(self) -> dict[str, Any]:
        """The numbers of teacher and students; gap: the teacher's minus the student's. ValueError without labels."""
        if not self.held.seen:
            raise ValueError("no pixel of these images has a label: there is nothing to compare")
        if self.held.step > 1:
            logger.info(
                "Entropies, divergences and agreement are of each %dth of %d pixels.", self.held.step, self.held.seen
            )
        held = self.held.joined()
        teacher, columns = dict(zip(OF_TEACHER, held.T, strict=False)), iter(held.T[len(OF_TEACHER) :])
        own = self.teacher_iou.result() | {"entropy": mean_of(teacher["entropy"])}
        groups = extremes(teacher["entropy"])
        found = {}
        for name, iou in self.student_iou.items():
            student, scores = {kind: next(columns) for kind in OF_STUDENT}, iou.result()
            found[name] = scores | {
                "mean_iou_gap": own["mean_iou"] - scores["mean_iou"],
                "pixel_accuracy_gap": own["pixel_accuracy"] - scores["pixel_accuracy"],
                "agreement": mean_of(student["agreement"]),
                "entropy": mean_of(student["entropy"]),
                **mean_divergences(student["kl"], groups),
                "by_teacher_entropy": _segments(teacher["entropy"], teacher["correct"], student["correct"]),
            }
        return {"images": self.images, "pixels": self.held.seen, "teacher": own, "students": found}


def _segments(values: Tensor, teacher: Tensor, student: Tensor) -> list[dict[str, float]]:
    return [{"pixels": one.pop("images")} | one for one in segments(values, teacher, student)]
