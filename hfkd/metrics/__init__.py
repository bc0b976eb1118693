"""Metrics as `evaluate.Metric` modules that need no network; each file also loads with `evaluate.load(<its path>)`."""

from hfkd.metrics.accuracy import ImageAccuracy, image_accuracy, topk_predictions
from hfkd.metrics.rouge_l import RougeL

__all__ = ["ImageAccuracy", "RougeL", "image_accuracy", "topk_predictions"]
