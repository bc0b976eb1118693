"""A complete run of a language model: train or resume, save, and write results.json."""

import logging
from typing import Any

from hfkd.experiments.run import save_student, train_to_the_end, without_paths
from hfkd.reports.results import RESULTS_NAME, ResultsCallback
from hfkd.trainer import DistillationTrainer
from hfkd.utils.json_file import read_json

logger = logging.getLogger(__name__)


def run_text(trainer: DistillationTrainer, config: dict[str, Any]) -> dict[str, Any]:
    """Train, resuming an interrupted session, and write results.json and the student.

    Best and last values are those of `metric_for_best_model`, else of eval_loss. `config` is recorded with the results.
    Returns the content of results.json. Call it on every rank.
    """
    config = without_paths(config)
    folder = train_to_the_end(trainer, ResultsCallback(config, metric="eval_loss", items_name="sequences"))
    save_student(trainer, config)
    if not trainer.is_world_process_zero():
        return {}
    logger.info("The student and results.json are in %s", folder)
    return read_json(folder / RESULTS_NAME)
