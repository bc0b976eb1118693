"""Metrics as `evaluate.Metric` modules that need no network; each file also loads with `evaluate.load(<its path>)`."""

from typing import Any

from hfkd.evaluation.metrics.accuracy import Accuracy, item_accuracy, topk_predictions
from hfkd.evaluation.metrics.rouge_l import RougeL

__all__ = ["Accuracy", "RougeL", "default_metrics", "item_accuracy", "topk_predictions"]


def default_metrics(scored_by: str | None) -> dict[str, Any]:
    """Trainer's `compute_metrics` and its like for a task's `scored_by`: nothing for None, which leaves the loss."""
    if scored_by is None:
        return {}
    assert scored_by == "accuracy"
    return {"compute_metrics": item_accuracy, "preprocess_logits_for_metrics": topk_predictions}
