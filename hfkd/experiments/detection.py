"""A run that trains a detector, from a recipe's flags to results.json and a page."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from hfkd.arguments import DistillationArguments
from hfkd.data.box_arguments import BoxDataArguments
from hfkd.experiments.pictures import example_name, picture, spread
from hfkd.experiments.run import run_with_page
from hfkd.models.detection_arguments import DetectionNetworkArguments
from hfkd.reports.boxes import BoxExample, FoundBoxes
from hfkd.reports.page import detection_sections
from hfkd.tasks.proof import untouched
from hfkd.trainer import DistillationTrainer
from hfkd.utils.flags import flag

SHOWN = 6  # number of images on the page


def detection_trainer(
    networks: DetectionNetworkArguments, data: BoxDataArguments, args: DistillationArguments
) -> DistillationTrainer:
    """The trainer of a detector, with a teacher if `args.kd_weight` or `args.evaluate_kl` needs it.

    The seed is set before the networks are created, so that runs in one process do not influence each other.
    """
    train, scored, names = data.load(seed=args.seed)
    set_seed(args.seed)
    student = networks.student(len(names))
    needed = args.kd_weight or (args.evaluate_kl and networks.teacher_name)
    teacher: Any = networks.teacher(len(names)) if needed else None
    return DistillationTrainer(student, teacher, args, train_dataset=train, eval_dataset=scored)


def run_detection(trainer: DistillationTrainer, config: dict[str, Any], score_training: bool = False) -> dict[str, Any]:
    """`run_with_page` for a detector. score_training: also evaluate on the training images, as `eval_train_ap`."""

    def score() -> None:
        if not score_training:
            return
        rows: Any = trainer.train_dataset
        clean = rows.with_transform(rows.format["format_kwargs"]["transform"].clean())
        trainer.evaluate(clean, metric_key_prefix="eval_train")

    def sections(history: Sequence[Any]) -> Any:
        names: Any = trainer.class_names
        return detection_sections(history, label_names=names, examples=box_examples(trainer))

    return run_with_page(trainer, config, sections, metric="eval_ap", trained=score)


@torch.no_grad()
def box_examples(trainer: DistillationTrainer) -> list[BoxExample]:
    """A few images spread over the evaluation set, with their boxes and the networks' detections."""
    rows: Any = trainer.eval_dataset
    if rows is None or isinstance(rows, dict) or trainer.model is None:
        return []
    with ExitStack() as stack:
        stack.enter_context(untouched(trainer.model))
        if trainer.teacher is not None:
            stack.enter_context(trainer.teacher.frozen())
        return [_example(trainer, k, rows[k]) for k in spread(len(rows), SHOWN)]


def _example(trainer: DistillationTrainer, place: int, row: Any) -> BoxExample:
    batch: Any = trainer._prepare_inputs(trainer.data_collator([row]))
    assert trainer.model is not None
    networks: dict[str, Any] = {"student": trainer.evaluated_network(trainer.model)}
    if trainer.teacher is not None:
        networks["teacher"] = trainer.teacher.networks[0]
    found = {name: _found(trainer.call.output(network, batch)["detections"][0]) for name, network in networks.items()}
    there = {"boxes": batch["boxes"][0], "labels": batch["labels"][0]}
    return BoxExample(example_name(place), picture(batch["pixel_values"][0], None), _found(there), **found)


def _found(boxes: Mapping[str, Tensor]) -> FoundBoxes:
    return FoundBoxes(**{name: values.cpu() for name, values in boxes.items()})


@dataclass
class ScoreArguments:
    """Evaluation besides AP on the test images."""

    score_training: bool = flag(False, "After training, also evaluate on the training images: eval_train_ap.")
