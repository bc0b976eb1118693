"""A run whose page shows the networks' predictions on a few images: masks, boxes."""

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from hfkd.experiments.run import save_student, train_to_the_end, without_paths
from hfkd.reports.page import run_page
from hfkd.reports.results import RESULTS_NAME, ResultsCallback
from hfkd.trainer import DistillationTrainer
from hfkd.utils.json_file import read_json

logger = logging.getLogger(__name__)

PAGE_NAME = "index.html"


def run_pictured(
    trainer: DistillationTrainer,
    config: dict[str, Any],
    metric: str,
    sections: Callable[[Sequence[Any]], Any],
    trained: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    """Train, resuming an interrupted session, and write results.json, the student and a page.

    Call it on every rank. metric: that which determines the best epoch. sections: a function from the log history to
    the sections of the page. trained: called after training, on every rank.
    """
    config = without_paths(config)
    drawn = find_spec("matplotlib") is not None
    if not drawn:
        logger.warning("%s will not be written, as matplotlib is missing: pip install 'hfkd[demo]'", PAGE_NAME)
    folder = train_to_the_end(trainer, ResultsCallback(config, metric=metric))
    trained()
    results: dict[str, Any] = {}
    if trainer.is_world_process_zero():
        results = read_json(folder / RESULTS_NAME)
        if drawn:
            history = trainer.state.log_history
            run_page(folder / PAGE_NAME, sections(history), config=config, log_history=history, results=results)
            logger.info("Results are in %s; open %s", folder, folder / PAGE_NAME)
    save_student(trainer, config)
    return results


def spread(rows: int, count: int) -> list[int]:
    """`count` evenly spaced row numbers; all rows if there are fewer."""
    return [k * rows // count for k in range(count)] if rows > count else list(range(rows))


def example_name(place: int) -> str:
    return f"Image {place} of the evaluation set"
