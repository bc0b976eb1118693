"""One run of training on images with masks: from what the flags of a recipe say to results.json."""

import json
from typing import Any

from transformers import PreTrainedModel, SegformerImageProcessor, set_seed

from hfkd.arguments import DistillationArguments
from hfkd.data.mask_arguments import MaskDataArguments
from hfkd.evaluation.metrics.mean_iou import MeanIoU, pixel_predictions
from hfkd.experiments.run import save_student, train_to_the_end, without_paths
from hfkd.models.segmentation_arguments import SegmentationNetworkArguments
from hfkd.reports.results import RESULTS_NAME, ResultsCallback
from hfkd.teachers import FrozenTeacher
from hfkd.trainer import DistillationTrainer


def segmentation_trainer(
    networks: SegmentationNetworkArguments, data: MaskDataArguments, args: DistillationArguments
) -> DistillationTrainer:
    """The trainer of a network of masks, with a teacher unless `args.kd_weight` is 0.

    The seed is set before the networks are made, so that several runs in one process give what each gives alone.
    """
    names, classes = data.label_names, data.classes
    train, test = data.load(seed=args.seed)
    set_seed(args.seed)
    student: Any = networks.student(classes, names)
    teacher = None
    if args.kd_weight:
        made = networks.teacher(classes)
        teacher = FrozenTeacher(made, wanted=networks.wanted, classes=networks.teacher_classes).unfreeze()
    if args.task == "auto":
        args.task = "semantic_segmentation"  # of a bare module too
    return DistillationTrainer(
        student,
        teacher,
        args,
        train_dataset=train,
        eval_dataset=test,
        processing_class=_processor(data) if isinstance(student, PreTrainedModel) else None,
        compute_metrics=MeanIoU(classes, names),
        preprocess_logits_for_metrics=pixel_predictions,
    )


def run_segmentation(trainer: DistillationTrainer, config: dict[str, Any]) -> dict[str, Any]:
    """Train, taking up an earlier session that was stopped, and write results.json and the student. On every rank."""
    config = without_paths(config)
    folder = train_to_the_end(trainer, ResultsCallback(config, metric="eval_mean_iou"))
    results = json.loads((folder / RESULTS_NAME).read_text()) if trainer.is_world_process_zero() else {}
    save_student(trainer, config)
    return results


def _processor(data: MaskDataArguments) -> SegformerImageProcessor:
    """What evaluation does to a picture and its mask, to be saved with the student."""
    height, width = data.image_size
    return SegformerImageProcessor(
        size={"height": height, "width": width},
        image_mean=data.image_mean,
        image_std=data.image_std,
        do_reduce_labels=data.reduce_labels,
    )
