"""Metrics as `evaluate.Metric` modules that need no network; each file also loads with `evaluate.load(<its path>)`."""

from hfkd.evaluation.metrics.accuracy import ImageAccuracy, image_accuracy, topk_predictions
from hfkd.evaluation.metrics.rouge_l import RougeL

__all__ = ["ImageAccuracy", "RougeL", "image_accuracy", "topk_predictions"]
