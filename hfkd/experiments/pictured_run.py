"""One run whose page shows what the networks say of a few images: masks, boxes."""

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
    """Train, taking up an earlier session that was stopped, and write results.json, the student and a page.

    On every rank. metric: what the best epoch is by. sections: those of the page, of the log. trained: called when
    training has ended, on every rank.
    """
    config = without_paths(config)
    drawn = find_spec("matplotlib") is not None
    if not drawn:
        logger.warning("There will be no %s: pip install 'hfkd[demo]' for its pictures", PAGE_NAME)
    folder = train_to_the_end(trainer, ResultsCallback(config, metric=metric))
    trained()
    results: dict[str, Any] = {}
    if trainer.is_world_process_zero():
        results = read_json(folder / RESULTS_NAME)
        if drawn:
            history = trainer.state.log_history
            run_page(folder / PAGE_NAME, sections(history), config=config, log_history=history, results=results)
            logger.info("The results are in %s; look at %s", folder, folder / PAGE_NAME)
    save_student(trainer, config)
    return results


def spread(rows: int, count: int) -> list[int]:
    """So many rows at equal distances; all where there are no more."""
    return [k * rows // count for k in range(count)] if rows > count else list(range(rows))


def example_name(place: int) -> str:
    return f"Image {place} of the evaluation set"
