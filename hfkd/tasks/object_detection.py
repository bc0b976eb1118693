"""Boxes of objects: torchvision's `FasterRCNN`, student and teacher on the student's proposals.

B images, G boxes of an image, D detections of an image, P proposals of the batch, C classes with the background.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection import FasterRCNN

from hfkd.data.boxes import BoxCollator
from hfkd.losses.distillation import cross_entropy
from hfkd.losses.items import Items, region_items
from hfkd.losses.temperatures import Fitted
from hfkd.models.calling import Call, bare
from hfkd.tasks.base import Batch, Collate, Task, register_task
from hfkd.utils.targets import IGNORED

EXACT = 1e-5  # relative, of two sums of the same numbers in another order


@register_task("object_detection")
class ObjectDetection(Task):
    """An item is a proposal, with its logits over the classes and the background (0); a sample is an image.

    The student runs once, as in its own training. The proposals that it samples, their logits and what they are to be
    classified as are seen by hooks, and the teacher classifies the same proposals (EA-KD, Table 5). Each image counts
    alike: the mean over its proposals, then the mean over images. The detector's own losses, all four, are added
    unchanged times `ce_weight`. Batches are `hfkd.data.boxes.BoxCollator`'s. Evaluation gives boxes, and no loss.
    """

    pipeline_tag = "object-detection"
    item = "a proposal"
    one_item_a_row = False
    by_share = True
    follows_student = True
    predicts = True
    normalises = True
    ignores = (IGNORED,)
    without_labels = "give the rows columns boxes [G, 4] and labels [G], or load them by hfkd.data.coco.load_coco"
    scored_by = "average_precision"

    def configure(self, args: Any) -> None:
        super().configure(args)
        sharded = args.fsdp or args.deepspeed or parse_flag_from_env("ACCELERATE_USE_FSDP")
        best = args.load_best_model_at_end and str(args.metric_for_best_model).removeprefix("eval_") == "loss"
        unmet = {
            "a cache of images keeps one row of logits an image": ("teacher_cache_dir", args.teacher_cache_dir),
            "a detector's own losses are taken as they are": ("label_smoothing_factor", args.label_smoothing_factor),
            "what a detector does depends on its data, and hooks see its proposals": (
                "torch_compile",
                args.torch_compile,
            ),
            "the parts of a detector are called one by one": ("fsdp or deepspeed", sharded),
            "evaluation gives boxes and no loss (name metric_for_best_model='ap')": ("metric_for_best_model", best),
        }
        for why, (name, value) in unmet.items():
            if value:
                raise ValueError(f"{name} cannot serve {self.name}: {why}; leave it out")
        if args.n_gpu > 1:
            raise ValueError("DataParallel runs copies of a detector, unseen: launch one process a GPU, as by torchrun")

    def check_networks(self, students: Sequence[nn.Module], teachers: Sequence[nn.Module], stored: bool) -> None:
        if stored:
            raise ValueError(
                "a stored teacher knows nothing of the proposals, which the student makes anew in each step: pass the "
                "live teacher"
            )
        for role, networks in (("student", students), ("teacher", teachers)):
            for network in networks:
                _check_detector(role, bare(network))
        for teacher in teachers:
            _check_sizes(bare(students[0]), bare(teacher))

    def check_loss(self, loss: Any) -> None:
        if isinstance(loss.temperature, Fitted):
            raise ValueError(
                f"temperature={loss.temperature!r} compares energies with thresholds of the training set, and there "
                f"are no fixed items to fit them on: {self.item} is another one in each step; give a number (EA-KD: 1)"
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
        if labels is None:  # in evaluation nobody assigns proposals to boxes, and nobody reads what they would be
            labels = torch.zeros(len(student), dtype=torch.long, device=student.device)
        made = region_items(student, teacher, labels, batch["region_counts"], progress=progress)
        return replace(made, rest_name="detector_loss", rest_has_ce=True)

    def added_loss(self, call: Call, output: Any, batch: Batch) -> Tensor | None:
        """The detector's own loss, as torchvision's training script sums it."""
        return sum(output["losses"].values())

    def predictions(self, batch: Batch, output: Any) -> tuple[Any, Any]:
        """Detections and boxes of each image, padded: boxes [B, D, 4], scores and labels [B, D], -100 in the padding.

        Boxes are in pixels of the batch's images, as those that are there.
        """
        found = output["detections"]
        names = ("boxes", "scores", "labels")
        made = {name: pad_sequence([one[name] for one in found], True, padding_value=IGNORED) for name in names}
        # As numbers: Trainer pads truth values to numbers, on those ranks alone whose images have fewer boxes.
        return made, {"boxes": batch["boxes"], "labels": batch["labels"], "iscrowd": batch["iscrowd"].long()}

    def check_own_loss(self, network: nn.Module, batch: Batch) -> None:
        """In training mode: the classification loss that is remade of logits and labels is the detector's own."""
        network.train()
        call = Call.of(network)
        seen = call.output(network, {name: value for name, value in batch.items() if name != "proposals"})
        own = seen["losses"].get("loss_classifier")
        if own is None or not bool(torch.isfinite(own)) or not len(seen["logits"]):
            return
        ours = cross_entropy(seen["logits"], seen["region_labels"]).mean()
        if not abs(own.item() - ours.item()) <= EXACT * max(abs(own.item()), 1.0):
            raise ValueError(
                f"the classification loss of {type(network).__name__} itself on two rows is {own.item():.4f}, and the "
                f"cross-entropy of the logits and labels that hfkd sees {ours.item():.4f}: its region heads compute "
                "something else than torchvision's RoIHeads; give it those"
            )

    def check_logits(self, logits: Tensor) -> None:
        if logits.ndim != 2:
            raise ValueError(
                f"the logits of the proposals have shape {tuple(logits.shape)}, and {self.name} takes [proposals, "
                "classes]: give the detector torchvision's FastRCNNPredictor"
            )

    def check_labels(self, labels: Tensor, classes: int | None) -> None:
        if labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim != 2:
            raise ValueError(
                f"labels of {str(labels.dtype).removeprefix('torch.')}, shape {tuple(labels.shape)}: the classes of "
                f"boxes are integers [batch, boxes], from 1 on (0 is the background), {IGNORED} where there is no box"
            )

    def sure_labels(self, network: nn.Module, batch: Batch) -> Tensor:
        return batch["labels"]


def _check_detector(role: str, network: Any) -> None:
    """Raise ValueError for a network that has no region heads, or more of them than boxes need."""
    name, heads = type(network).__name__, getattr(network, "roi_heads", None)
    if heads is None:
        raise ValueError(
            f"the {role}, a {name}, has no region heads (roi_heads), and object_detection distils what they say of "
            "proposals: give a torchvision FasterRCNN"
        )
    further = [kind for kind in ("mask", "keypoint") if getattr(heads, f"has_{kind}", bool)()]
    if further or not isinstance(network, FasterRCNN):
        also = f"predicts {further[0]}s beside boxes" if further else "is no FasterRCNN of torchvision's"
        raise ValueError(
            f"the {role}, a {name}, {also}, and object_detection has no loss for more than boxes: give a torchvision "
            "FasterRCNN"
        )


def _check_sizes(student: Any, teacher: Any) -> None:
    """Raise ValueError for detectors that resize an image differently: a proposal would be another place in it."""
    mine, its = student.transform, teacher.transform
    if len(mine.min_size) > 1:
        raise ValueError(
            f"the student draws one of the sizes min_size={tuple(mine.min_size)} for each image, which the teacher "
            "would not know: give it one, and vary the size in the data set's transform"
        )
    for setting in ("min_size", "max_size", "fixed_size", "size_divisible"):
        ours, theirs = getattr(mine, setting), getattr(its, setting)
        if setting == "min_size":
            ours, theirs = ours[-1], theirs[-1]
        if ours != theirs:
            raise ValueError(
                f"the student resizes images with {setting}={ours} and the teacher with {theirs}: proposals of the one "
                "are no places in the other; build both with the same"
            )
