"""A complete run, which resumes an interrupted session, and its page."""

import logging
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hfkd.reports.page import run_page
from hfkd.reports.results import RESULTS_NAME, ResultsCallback
from hfkd.trainer import DistillationTrainer
from hfkd.training.checkpoints.whole import last_checkpoint
from hfkd.utils.command import without_secrets
from hfkd.utils.json_file import read_json

logger = logging.getLogger(__name__)

PAGE_NAME = "index.html"


def run_with_page(
    trainer: DistillationTrainer,
    config: dict[str, Any],
    sections: Callable[..., Any] | None,
    *,
    metric: str = "eval_accuracy",
    items_name: str = "images",
    trained: Callable[[], Any] = lambda: None,
    shown: Callable[[], Mapping[str, Any]] = dict,
) -> dict[str, Any]:
    """Train, resuming an interrupted session, and write results.json, the student and a page.

    Returns the content of results.json. Call it on every rank. `config` is recorded with the results, `metric`
    determines the best epoch, and `items_name` is the name of rows. `trained` is called after training, before anything
    is written or uploaded, and then `shown` for what the page shows besides the curves, both on every rank. `sections`
    makes the page's sections from the log history and from what `shown` returns; None omits the page.
    """
    config = without_paths(config)
    if sections is not None and find_spec("matplotlib") is None:
        sections = None
        logger.warning("%s will not be written, as matplotlib is missing: pip install 'hfkd[demo]'", PAGE_NAME)
    folder = train_to_the_end(trainer, ResultsCallback(config, metric=metric, items_name=items_name))
    trained()
    results: dict[str, Any] = {}
    try:
        data = {} if sections is None else shown()
        if trainer.is_world_process_zero():
            results = read_json(folder / RESULTS_NAME)
            if sections is None:
                logger.info("Results are in %s", folder)
            else:
                parts, history = sections(trainer.state.log_history, **data), trainer.state.log_history
                run_page(folder / PAGE_NAME, parts, config=config, log_history=history, results=results)
                logger.info("Results are in %s; open %s", folder, folder / PAGE_NAME)
    finally:  # after the page, which is uploaded too; but an error in drawing it must not lose the student
        save_student(trainer, config)
    return results


def run_text(trainer: DistillationTrainer, config: dict[str, Any]) -> dict[str, Any]:
    """`run_with_page` for a language model, without a page.

    Best and last values are those of `metric_for_best_model`, else of eval_loss.
    """
    return run_with_page(trainer, config, None, metric="eval_loss", items_name="sequences")


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
    local = Path(value).is_absolute() or ("/" in value and os.path.exists(value))  # False for a text of any length
    return Path(value).name if local else without_secrets(value)
