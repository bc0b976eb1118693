"""A run that trains a segmentation network, from a recipe's flags to results.json."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, SegformerImageProcessor, set_seed

from hfkd.arguments import DistillationArguments
from hfkd.data.mask_arguments import MaskDataArguments
from hfkd.evaluation.metrics.mean_iou import MeanIoU, pixel_predictions
from hfkd.experiments.earlier_run import mask_inputs
from hfkd.experiments.pictures import example_name, picture, spread
from hfkd.experiments.run import run_with_page
from hfkd.losses.functional import energy, entropy, interpolated
from hfkd.models import InputSpec
from hfkd.models.calling import logits_of
from hfkd.models.mask_teacher_arguments import MaskTeacherArguments
from hfkd.models.segmentation_arguments import SegmentationNetworkArguments
from hfkd.reports.masks import MaskExample
from hfkd.reports.page import segmentation_sections
from hfkd.tasks.semantic_segmentation import flat_labels
from hfkd.teachers import FrozenTeacher
from hfkd.trainer import DistillationTrainer
from hfkd.training.validation.normalisation import receiving
from hfkd.utils.modes import in_eval_mode

SHOWN = 4  # number of images on the page


def segmentation_trainer(
    networks: SegmentationNetworkArguments, data: MaskDataArguments, args: DistillationArguments
) -> DistillationTrainer:
    """The trainer of a segmentation network, with a teacher if `args.kd_weight` or `args.evaluate_kl` needs it.

    The seed is set before the networks are created, so that runs in one process do not influence each other.
    """
    names, classes = data.label_names, data.classes
    train, test = data.load(seed=args.seed)
    set_seed(args.seed)
    student: Any = networks.student(classes, names)
    teacher = None
    if args.kd_weight or (args.evaluate_kl and networks.teacher_name):
        teacher = mask_teacher(networks.teacher(classes), networks, classes).unfreeze()
    if args.task == "auto":
        args.task = "semantic_segmentation"  # also for modules that are not transformers models
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


def mask_teacher(
    network: nn.Module, given: MaskTeacherArguments, classes: int, received: InputSpec | None = None
) -> FrozenTeacher:
    """A teacher of images normalised by `received`; weights of an earlier run get its own, and have its class names."""
    wanted, names = mask_inputs(given.teacher_checkpoint)
    chosen = given.teacher_classes
    named = names if chosen is None and names is not None and len(names) == classes else None
    return FrozenTeacher(network, received, given.wanted or wanted, label_names=named, classes=chosen)


def run_segmentation(trainer: DistillationTrainer, config: dict[str, Any]) -> dict[str, Any]:
    """`run_with_page` for a segmentation network."""

    def sections(history: Sequence[Any]) -> Any:
        named: Any = trainer.compute_metrics
        return segmentation_sections(history, label_names=named.names, examples=mask_examples(trainer))

    return run_with_page(trainer, config, sections, metric="eval_mean_iou")


@torch.no_grad()
def mask_examples(trainer: DistillationTrainer) -> list[MaskExample]:
    """A few images spread over the evaluation set, with the predictions of student and teacher for each pixel."""
    rows: Any = trainer.eval_dataset
    model = trainer.model
    if rows is None or isinstance(rows, dict) or trainer.is_fsdp_enabled or model is None:
        return []
    with in_eval_mode(model):
        return [_example(trainer, model, k, rows[k]) for k in spread(len(rows), SHOWN)]


def teacher_pictures(maps: Tensor, size: Sequence[int]) -> dict[str, Tensor]:
    """A `MaskExample`'s maps [H, W] of the teacher, on the CPU, from its logits for one image [1, C, h, w]."""
    taught = interpolated(maps, size)[0].movedim(0, -1).cpu()  # [H, W, C]
    return {"teacher": taught.argmax(-1), "energy": energy(taught), "entropy": entropy(taught)}


def _example(trainer: DistillationTrainer, student: nn.Module, place: int, row: Any) -> MaskExample:
    batch = trainer._prepare_inputs(trainer.data_collator([row]))
    size = batch["labels"].shape[-2:]
    seen = interpolated(logits_of(trainer.call.output(trainer.evaluated_network(student), batch)), size)[0]  # [C, H, W]
    label = flat_labels(batch["labels"], None).view(size).cpu()
    found: dict[str, Any] = {
        "image": picture(batch["pixel_values"][0], trainer.received.spec),
        "label": label,
        "student": seen.argmax(0).cpu(),
    }
    if trainer.teacher is not None:
        with receiving(trainer.teacher, trainer.image_inputs, trainer.eval_dataset), trainer.teacher.frozen():
            found |= teacher_pictures(trainer.evaluated_network(trainer.teacher)(**batch), size)
    return MaskExample(example_name(place), **found)


def _processor(data: MaskDataArguments) -> SegformerImageProcessor:
    """An image processor that prepares images and masks as evaluation does, to save with the student."""
    height, width = data.image_size
    return SegformerImageProcessor(
        size={"height": height, "width": width},
        image_mean=data.image_mean,
        image_std=data.image_std,
        do_reduce_labels=data.reduce_labels,
    )
