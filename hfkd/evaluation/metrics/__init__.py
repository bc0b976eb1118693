"""Metrics as `evaluate.Metric` modules that work offline; each file also loads with `evaluate.load(<its path>)`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hfkd.evaluation.metrics.accuracy import IGNORED, Accuracy, item_accuracy, topk_predictions
from hfkd.evaluation.metrics.average_precision import AveragePrecision
from hfkd.evaluation.metrics.rouge_l import RougeL

__all__ = [
    "Accuracy",
    "AveragePrecision",
    "RougeL",
    "default_metrics",
    "item_accuracy",
    "own_metrics",
    "topk_predictions",
]


def own_metrics(scored_by: str | None, args: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The default metric of a task (`scored_by`), unless a metric is given or Trainer's arguments exclude one."""
    asked = given.get("compute_metrics") or given.get("preprocess_logits_for_metrics")
    if scored_by == "average_precision":
        scores = not asked and given.get("eval_dataset") is not None and not args.prediction_loss_only
        return {"compute_metrics": AveragePrecision()} if scores else {}
    if scored_by != "accuracy" or asked or args.batch_eval_metrics or args.prediction_loss_only:
        return {}
    return default_metrics(scored_by) | {"compute_metrics": accuracy_of_class_ids}


def accuracy_of_class_ids(prediction: Any) -> dict[str, float]:
    """`item_accuracy`; {} for mixed labels, or without labels."""
    labels = prediction.label_ids
    if not isinstance(labels, np.ndarray) or np.issubdtype(labels.dtype, np.floating) or (labels == IGNORED).all():
        return {}
    return item_accuracy(prediction)


def default_metrics(scored_by: str | None) -> dict[str, Any]:
    """Trainer's `compute_metrics` and `preprocess_logits_for_metrics` for a task's `scored_by`; {} for None."""
    if scored_by is None:
        return {}
    assert scored_by == "accuracy"
    return {"compute_metrics": item_accuracy, "preprocess_logits_for_metrics": topk_predictions}
