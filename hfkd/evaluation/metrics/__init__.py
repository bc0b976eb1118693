"""Metrics as `evaluate.Metric` modules that work offline; each file also loads with `evaluate.load(<its path>)`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from transformers.trainer_pt_utils import nested_numpify

from hfkd.evaluation.metrics.accuracy import Accuracy, item_accuracy, item_hits, of_hits, topk_predictions
from hfkd.evaluation.metrics.average_precision import AveragePrecision
from hfkd.evaluation.metrics.mean_iou import MeanIoU, pixel_predictions
from hfkd.evaluation.metrics.rouge_l import RougeL
from hfkd.evaluation.metrics.running import Running

__all__ = [
    "Accuracy",
    "AveragePrecision",
    "RougeL",
    "Running",
    "RunningAccuracy",
    "check_counted",
    "default_metrics",
    "in_any_way",
    "item_accuracy",
    "own_metrics",
    "reads_logits",
    "topk_predictions",
]


class RunningAccuracy(Running):
    """`item_accuracy` of any number of batches; {} for mixed labels, or without labels.

    in_batches: of several items a row, whose predictions Trainer would keep for all positions of all rows on the
    device, and copy with each batch.
    """

    def __init__(self, in_batches: bool = False) -> None:
        super().__init__()
        self.in_batches = in_batches
        self.hits: list[np.ndarray] = []

    def add(self, predictions: Any, labels: Any) -> None:
        if isinstance(predictions, tuple):  # of several outputs the logits are the first
            predictions = predictions[0]
        predictions, labels = (nested_numpify(x) if isinstance(x, Tensor) else x for x in (predictions, labels))
        if isinstance(labels, np.ndarray) and not np.issubdtype(labels.dtype, np.floating):
            self.hits.append(item_hits(predictions, labels))

    def result(self) -> dict[str, float]:
        found = of_hits(self.hits)
        self.reset()
        return found

    def reset(self) -> None:
        self.hits = []


def own_metrics(scored_by: str | None, several: bool, args: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The default metric of a task (`scored_by`), unless a metric is given or Trainer's arguments exclude one.

    several: whether a row has several items.
    """
    asked = given.get("compute_metrics") or given.get("preprocess_logits_for_metrics")
    if asked or args.prediction_loss_only:
        return {}
    if scored_by == "average_precision":
        return {"compute_metrics": AveragePrecision()} if given.get("eval_dataset") is not None else {}
    accuracy = {"compute_metrics": RunningAccuracy(several)}
    return default_metrics(scored_by) | accuracy if scored_by == "accuracy" else {}


def check_counted(metrics: Any, classes: int | None) -> None:
    """Raise ValueError for a metric that counts fewer classes than the student has, if these are known."""
    if isinstance(metrics, MeanIoU) and classes is not None:
        metrics.check_classes(classes)


def in_any_way(keywords: Mapping[str, Any], several: bool, args: Any) -> dict[str, Any]:
    """Trainer's `keywords`, with `item_accuracy` replaced where Trainer is to hand over each batch by itself."""
    batched = keywords.get("compute_metrics") is item_accuracy and (several or args.batch_eval_metrics)
    return {**keywords, "compute_metrics": RunningAccuracy(several)} if batched else dict(keywords)


def reads_logits(metrics: Any, preprocess: Any) -> bool:
    """Whether a trainer's metrics are those of hfkd that take the first of several outputs for the logits."""
    preprocess = getattr(preprocess, "own", preprocess)  # of `OfOwnSize`, on several processes
    ours = metrics is item_accuracy or isinstance(metrics, (RunningAccuracy, MeanIoU))
    return ours or preprocess in (topk_predictions, pixel_predictions)


def default_metrics(scored_by: str | None) -> dict[str, Any]:
    """Trainer's `compute_metrics` and `preprocess_logits_for_metrics` for a task's `scored_by`; {} for None."""
    if scored_by is None:
        return {}
    assert scored_by == "accuracy"
    return {"compute_metrics": item_accuracy, "preprocess_logits_for_metrics": topk_predictions}
