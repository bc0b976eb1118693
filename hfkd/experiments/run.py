"""A complete run, which resumes an interrupted session."""

import logging
from pathlib import Path
from typing import Any

from hfkd.reports.results import ResultsCallback
from hfkd.trainer import DistillationTrainer
from hfkd.training.checkpoints.whole import last_checkpoint
from hfkd.utils.command import without_secrets

logger = logging.getLogger(__name__)


def train_to_the_end(trainer: DistillationTrainer, results: ResultsCallback) -> Path:
    """Train from the last complete checkpoint, or from the start; returns the run's folder. The student is saved later.

    `resume_from_checkpoint` may name another checkpoint, or be False to start from scratch. A run that diverges is
    recorded as failed and raises FloatingPointError.
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
        logger.warning("Starting from scratch; %s of an earlier run stays until it is overwritten.", last)
    try:
        trainer.train(resume_from_checkpoint=start)
    except FloatingPointError as error:
        results.fail(args, trainer.state, str(error))
        raise
    return Path(args.output_dir or ".")


def save_student(trainer: DistillationTrainer, config: dict[str, Any]) -> None:
    """Write the student and its model card, with the data in `config`, and with `push_to_hub` upload the folder.

    The last step of a run, when all files exist. Raises ConnectionError if the upload fails.
    """
    trainer.details = config
    trainer.save_model()
    if not trainer.args.push_to_hub:  # with it, `save_model` has written the card
        trainer.create_model_card()


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """`config` for publication: only the names of local files and folders, and no secrets."""
    return {k: [_named(v) for v in value] if isinstance(value, list) else _named(value) for k, value in config.items()}


def _named(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return Path(value).name if "/" in value and Path(value).exists() else without_secrets(value)
