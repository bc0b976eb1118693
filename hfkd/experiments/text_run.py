"""A complete run of a language model."""

from typing import Any

from hfkd.experiments.run import run_with_page
from hfkd.trainer import DistillationTrainer


def run_text(trainer: DistillationTrainer, config: dict[str, Any]) -> dict[str, Any]:
    """`run_with_page` for a language model, without a page.

    Best and last values are those of `metric_for_best_model`, else of eval_loss.
    """
    return run_with_page(trainer, config, None, metric="eval_loss", items_name="sequences")
