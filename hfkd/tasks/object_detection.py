"""Object detection with torchvision's `FasterRCNN`; student and teacher classify the student's proposals.

B images, G boxes of an image, D detections of an image, P proposals of the batch, C classes with the background.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection import FasterRCNN

from hfkd.data.boxes import BoxCollator, refuse_shares
from hfkd.losses.distillation import cross_entropy
from hfkd.losses.items import Items, region_items
from hfkd.losses.temperatures import Fitted
from hfkd.models.calling import Call, bare
from hfkd.tasks.base import Batch, Collate, Task, register_task
from hfkd.utils.launch import uses_fsdp
from hfkd.utils.targets import IGNORED

EXACT = 1e-5  # relative difference of two sums of the same numbers in different order


@register_task("object_detection")
class ObjectDetection(Task):
    """An item is a proposal, with logits over the background (0) and the classes; a sample is an image.

    The student runs once, as in its own training. Hooks record the proposals that it samples, their logits and their
    target classes, and the teacher classifies the same proposals (EA-KD, Table 5). All images have equal weight: the
    loss is the mean over the proposals of an image, then over images. The detector's own four losses are added,
    multiplied by `ce_weight`. Batches come from `hfkd.data.boxes.BoxCollator`. Evaluation predicts boxes and has no
    loss.
    """

    pipeline_tag = "object-detection"
    item = "a proposal"
    one_item_a_row = False
    by_share = True
    follows_student = True
    predicts = True
    normalises = True
    ignores = (IGNORED,)
    without_labels = "rows need the columns boxes [G, 4] and labels [G], as loaded by hfkd.data.coco.load_coco"
    scored_by = "average_precision"

    def configure(self, args: Any) -> None:
        super().configure(args)
        sharded = uses_fsdp(args) or args.deepspeed
        best = args.load_best_model_at_end and str(args.metric_for_best_model).removeprefix("eval_") == "loss"
        unmet = {
            "the cache stores one row of logits per image": ("teacher_cache_dir", args.teacher_cache_dir),
            "a detector's own losses are used unchanged": ("label_smoothing_factor", args.label_smoothing_factor),
            "the operations of a detector depend on the data, and hooks read its proposals": (
                "torch_compile",
                args.torch_compile,
            ),
            "the parts of a detector are called separately": ("fsdp or deepspeed", sharded),
            "evaluation predicts boxes and has no loss (set metric_for_best_model='ap')": (
                "metric_for_best_model",
                best,
            ),
        }
        for why, (name, value) in unmet.items():
            if value:
                raise ValueError(f"{name} is not supported for {self.name}: {why}; leave it out")
        if args.n_gpu > 1:
            raise ValueError(
                "DataParallel runs copies of the detector, which hooks cannot read: launch one "
                "process per GPU, for example with torchrun"
            )

    def check_networks(self, students: Sequence[nn.Module], teachers: Sequence[nn.Module], stored: bool) -> None:
        if stored:
            raise ValueError(
                "a stored teacher cannot classify the proposals, which the student generates anew in each step: "
                "pass the live teacher"
            )
        for role, networks in (("student", students), ("teacher", teachers)):
            for network in networks:
                _check_detector(role, bare(network))
        for teacher in teachers:
            _check_sizes(bare(students[0]), bare(teacher))

    def check_loss(self, loss: Any) -> None:
        if isinstance(loss.temperature, Fitted):
            raise ValueError(
                f"temperature={loss.temperature!r} compares energies with thresholds fitted on the training set, "
                f"but the items of this task ({self.item}) differ in each step: set temperature to a number (EA-KD: 1)"
            )

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        return BoxCollator()

    def ready(self, collate: Collate) -> Collate:
        return collate if isinstance(collate, BoxCollator) else BoxCollator(collate)

    def count(self, batch: Batch) -> Tensor | int:
        return len(batch["labels"])

    def count_samples(self, batch: Batch) -> Tensor | int:
        return len(batch["labels"])

    def after_student(self, batch: Batch, output: Any) -> Batch:
        proposals = output["proposals"]
        known = {"proposals": proposals, "resized": output["resized"], "region_counts": [len(p) for p in proposals]}
        return {**batch, **known, "region_labels": output.get("region_labels")}

    def items(self, batch: Batch, student: Tensor, teacher: Tensor, progress: float | None = 0.0) -> Items:
        labels = batch["region_labels"]
        if labels is None:  # in evaluation proposals are not assigned to boxes, and labels are not used
            labels = torch.zeros(len(student), dtype=torch.long, device=student.device)
        made = region_items(student, teacher, labels, batch["region_counts"], progress=progress)
        return replace(made, rest_name="detector_loss", rest_has_ce=True)

    def added_loss(self, call: Call, output: Any, batch: Batch) -> Tensor | None:
        """The sum of the detector's own losses, as in torchvision's training script."""
        return sum(output["losses"].values())

    def predictions(self, batch: Batch, output: Any) -> tuple[Any, Any]:
        """Detections and reference boxes of each image, padded with -100: boxes [B, D, 4], scores and labels [B, D].

        Both are in pixels of the batch's images.
        """
        found = output["detections"]
        names = ("boxes", "scores", "labels")
        made = {name: pad_sequence([one[name] for one in found], True, padding_value=IGNORED) for name in names}
        # iscrowd as integers: Trainer's padding turns bools into integers, but only on ranks that pad.
        return made, {"boxes": batch["boxes"], "labels": batch["labels"], "iscrowd": batch["iscrowd"].long()}

    def check_own_loss(self, network: nn.Module, batch: Batch) -> None:
        """Check, in training mode, that the cross-entropy of recorded logits and labels is the detector's loss."""
        network.train()
        call = Call.of(network)
        seen = call.output(network, {name: value for name, value in batch.items() if name != "proposals"})
        own = seen["losses"].get("loss_classifier")
        if own is None or not bool(torch.isfinite(own)) or not len(seen["logits"]):
            return
        ours = cross_entropy(seen["logits"], seen["region_labels"]).mean()
        if not abs(own.item() - ours.item()) <= EXACT * max(abs(own.item()), 1.0):
            raise ValueError(
                f"the classification loss computed by {type(network).__name__} on two rows is {own.item():.4f}, "
                f"but the cross-entropy of its logits and labels is {ours.item():.4f}: its region heads differ "
                "from torchvision's RoIHeads; use those"
            )

    def check_logits(self, logits: Tensor) -> None:
        if logits.ndim != 2:
            raise ValueError(
                f"the logits of the proposals have shape {tuple(logits.shape)}, but {self.name} needs [proposals, "
                "classes]: use torchvision's FastRCNNPredictor in the detector"
            )

    def check_labels(self, labels: Tensor, classes: int | None) -> None:
        if labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim != 2:
            raise ValueError(
                f"labels are of type {str(labels.dtype).removeprefix('torch.')}, shape {tuple(labels.shape)}: the "
                "classes of boxes must be integers [batch, boxes], starting at 1 (0 is the background), with "
                f"{IGNORED} for padding"
            )

    def check_rows(self, rows: Sequence[Any], batch: Batch) -> None:
        refuse_shares(batch["boxes"][batch["labels"] != IGNORED])

    def sure_labels(self, network: nn.Module, batch: Batch) -> Tensor:
        return batch["labels"]


def _check_detector(role: str, network: Any) -> None:
    """Raise ValueError for a network without region heads, or with heads for more than boxes."""
    name, heads = type(network).__name__, getattr(network, "roi_heads", None)
    if heads is None:
        raise ValueError(
            f"the {role}, a {name}, has no region heads (roi_heads), whose logits object_detection distils: use a "
            "torchvision FasterRCNN"
        )
    further = [kind for kind in ("mask", "keypoint") if getattr(heads, f"has_{kind}", bool)()]
    if further or not isinstance(network, FasterRCNN):
        also = f"predicts {further[0]}s too" if further else "is not a torchvision FasterRCNN"
        raise ValueError(
            f"the {role}, a {name}, {also}, but object_detection supports only boxes: use a torchvision FasterRCNN"
        )


def _check_sizes(student: Any, teacher: Any) -> None:
    """Raise ValueError for detectors that resize images differently: proposals would not match."""
    mine, its = student.transform, teacher.transform
    if len(mine.min_size) > 1:
        raise ValueError(
            f"the student resizes each image to a random one of min_size={tuple(mine.min_size)}, which the "
            "teacher cannot follow: set one min_size, and vary the size in the dataset's transform"
        )
    for setting in ("min_size", "max_size", "fixed_size", "size_divisible"):
        ours, theirs = getattr(mine, setting), getattr(its, setting)
        if setting == "min_size":
            ours, theirs = ours[-1], theirs[-1]
        if ours != theirs:
            raise ValueError(
                f"the student resizes images with {setting}={ours} and the teacher with {theirs}, so that the "
                "student's proposals do not match the teacher's images: build both with the same value"
            )
