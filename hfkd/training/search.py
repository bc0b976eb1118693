"""What a search of hyperparameters compares where nobody says it."""

from collections.abc import Callable
from typing import Any

from transformers.trainer_utils import default_compute_objective

from hfkd.utils.metric_names import is_divergence

Objective = Callable[[dict[str, float]], float]


def default_objective(evaluation_sets: Any, own_metrics: bool, scored_by_loss: bool, direction: Any) -> Objective:
    """Trainer's default of the metrics that the caller's `compute_metrics` gives; without one eval_loss.

    Trainer adds up whatever evaluation gives, and by default seeks the smallest sum: with the accuracy that trainers
    here report by themselves (`own_metrics`) that would be the worst student. Raises ValueError where there is no
    eval_loss, or its largest value is asked for.
    """
    if not own_metrics:
        return lambda metrics: default_compute_objective({k: v for k, v in metrics.items() if not is_divergence(k)})
    if not scored_by_loss or isinstance(evaluation_sets, dict):
        raise ValueError(
            "a search without compute_objective compares eval_loss, and this trainer's evaluation gives none of that "
            "name: pass compute_objective, such as lambda metrics: metrics['eval_ap'], and direction='maximize' for a "
            "score"
        )
    if direction == "maximize":
        raise ValueError(
            "direction='maximize' without compute_objective would look for the largest eval_loss: pass "
            "compute_objective, such as lambda metrics: metrics['eval_accuracy'], or direction='minimize'"
        )
    return lambda metrics: metrics["eval_loss"]
