"""A run from start to end, taking up an earlier session that was stopped."""

import logging
from pathlib import Path
from typing import Any

from hfkd.reports.results import ResultsCallback
from hfkd.trainer import DistillationTrainer
from hfkd.training.checkpoints.whole import last_checkpoint
from hfkd.utils.command import without_secrets

logger = logging.getLogger(__name__)


def train_to_the_end(trainer: DistillationTrainer, results: ResultsCallback) -> Path:
    """Train from the last complete checkpoint, or from the start; the folder of the run. The student is saved later.

    `resume_from_checkpoint` may name another checkpoint, or with False ask for the start.

    A run that diverges is recorded as failed, and raises FloatingPointError.
    """
    args = trainer.args
    trainer.add_callback(results)
    start: Any = args.resume_from_checkpoint
    last = None if isinstance(start, str) else last_checkpoint(args.output_dir)
    if start is None:
        start = last
    if start:
        logger.info("Resuming from %s", last or start)
    elif last:
        logger.warning("Starting anew beside %s of an earlier start, which stays until it is written over.", last)
    try:
        trainer.train(resume_from_checkpoint=start)
    except FloatingPointError as error:
        results.fail(args, trainer.state, str(error))
        raise
    return Path(args.output_dir or ".")


def save_student(trainer: DistillationTrainer, config: dict[str, Any]) -> None:
    """Write the student and its card, which names the data of `config`, and with `push_to_hub` upload the folder.

    Comes last in a run, when all that is uploaded is there. Raises ConnectionError when the upload fails.
    """
    trainer.details = config
    trainer.save_model()
    if not trainer.args.push_to_hub:  # with it, `save_model` has written the card
        trainer.create_model_card()


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """`config` fit to be published: of a local file or folder, its name alone, and no secret."""
    return {k: [_named(v) for v in value] if isinstance(value, list) else _named(value) for k, value in config.items()}


def _named(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return Path(value).name if "/" in value and Path(value).exists() else without_secrets(value)
