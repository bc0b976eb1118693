"""One run of training a detector: from what the flags of a recipe say to results.json and a page."""

import json
from dataclasses import dataclass, field
from typing import Any

from transformers import set_seed

from hfkd.arguments import DistillationArguments
from hfkd.data.box_arguments import BoxDataArguments
from hfkd.experiments.run import save_student, train_to_the_end, without_paths
from hfkd.models.detection_arguments import DetectionNetworkArguments
from hfkd.reports.results import RESULTS_NAME, ResultsCallback
from hfkd.trainer import DistillationTrainer


def detection_trainer(
    networks: DetectionNetworkArguments, data: BoxDataArguments, args: DistillationArguments
) -> DistillationTrainer:
    """The trainer of a detector, with a teacher unless `args.kd_weight` is 0 and it is not compared with one.

    The seed is set before the networks are made, so that several runs in one process give what each gives alone.
    """
    train, scored, names = data.load(seed=args.seed)
    set_seed(args.seed)
    student = networks.student(len(names))
    teacher: Any = networks.teacher(len(names)) if args.kd_weight or args.evaluate_kl else None
    return DistillationTrainer(student, teacher, args, train_dataset=train, eval_dataset=scored)


def run_detection(trainer: DistillationTrainer, config: dict[str, Any], score_training: bool = False) -> dict[str, Any]:
    """Train, taking up an earlier session that was stopped, and write results.json and the student. On every rank.

    score_training: evaluate on the training images too, at the end, as `eval_train_ap`.
    """
    config = without_paths(config)
    folder = train_to_the_end(trainer, ResultsCallback(config, metric="eval_ap"))
    if score_training:
        rows: Any = trainer.train_dataset
        clean = rows.with_transform(rows.format["format_kwargs"]["transform"].clean())
        trainer.evaluate(clean, metric_key_prefix="eval_train")
    results = json.loads((folder / RESULTS_NAME).read_text()) if trainer.is_world_process_zero() else {}
    save_student(trainer, config)
    return results


@dataclass
class ScoreArguments:
    """What is measured beside AP on the test images."""

    score_training: bool = field(
        default=False, metadata={"help": "At the end, evaluate on the training images too: eval_train_ap."}
    )
