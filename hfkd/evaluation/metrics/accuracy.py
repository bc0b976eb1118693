"""Top-1 and top-5 accuracy of items, from logits, from class ids best first, or from plain predictions.

N items (images, texts, tokens), B rows, L length, C classes, k = min(5, C). `evaluate.load` copies this file alone, so
it imports nothing of hfkd.
"""

from collections.abc import Iterable
from typing import Any

import evaluate
import numpy as np
import torch
from datasets import Features, Sequence, Value
from torch import Tensor

TOP_K = 5
IGNORED = -100  # the label of rows and tokens without a label

DESCRIPTION = "Share of items whose class is predicted (accuracy) or in the top five (top5_accuracy), 0 to 1."
INPUTS = """
Args:
    predictions: class ids [N], or logits [N, C], or with `ranked=True` class ids best first [N, k].
    references: class ids [N], -100 for an item without.
Returns:
    `accuracy`; and `top5_accuracy` unless predictions are [N] or there are fewer than five classes.
"""


class Accuracy(evaluate.Metric):
    """Top-1 and top-5 accuracy, offline: `Accuracy().compute(predictions=logits, references=labels)`."""

    def _info(self) -> evaluate.MetricInfo:
        # evaluate uses the first matching format and would round logits to ids, so rows of numbers are always floats
        labels = Value("int64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=[
                Features({"predictions": Sequence(Value("float64")), "references": labels}),
                Features({"predictions": labels, "references": labels}),
            ],
        )

    def _compute(
        self, predictions: list[list[float]] | list[int], references: list[int], ranked: bool = False
    ) -> dict[str, float]:
        values = np.asarray(predictions)
        return of_hits([_hits(values.astype(np.int64) if ranked else values, np.asarray(references))])


def topk_predictions(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """For Trainer's `preprocess_logits_for_metrics`: logits [.., C] -> class ids best first [.., k].

    Then only five numbers per item, instead of C, are gathered and kept. For a tuple (of a model that also returns
    hidden states) the first element is used.
    """
    first = logits[0] if isinstance(logits, (tuple, list)) else logits
    return first.topk(min(TOP_K, first.shape[-1]), dim=-1).indices  # [.., k]


def item_accuracy(prediction: Any) -> dict[str, float]:
    """For Trainer's `compute_metrics`: an `EvalPrediction` -> `accuracy` and `top5_accuracy`, 0 to 1.

    `predictions` are what `topk_predictions` made (whole numbers), or logits (floats): [N, k] or [N, C] for labels [N],
    [B, L, k] or [B, L, C] for labels [B, L]; lists of these are batches (`eval_do_concat_batches=False`). Labels of
    -100 are ignored; if all are -100, the result is {}. A label is predicted at its own position, so that this does not
    apply to causal language models. DistillationTrainer takes it with `batch_eval_metrics` too.
    """
    predictions, labels = prediction.predictions, prediction.label_ids
    batches = zip(predictions, labels, strict=True) if isinstance(labels, list) else [(predictions, labels)]
    return of_hits([item_hits(*batch) for batch in batches])


def item_hits(predictions: Any, labels: Any) -> np.ndarray:
    """Whether the first, second, ... prediction is the label, for the items of a batch that have one: [N, k]."""
    first = np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
    labels = np.asarray(labels)
    if labels.ndim == 2 and first.ndim == 3 and first.shape[:2] == labels.shape:
        first, labels = first.reshape(-1, first.shape[-1]), labels.reshape(-1)  # [N, k or C], [N]
    return _hits(first, labels)


def of_hits(batches: Iterable[np.ndarray]) -> dict[str, float]:
    """The accuracies of batches of `item_hits`; {} if no item has a label."""
    known = [hits for hits in batches if len(hits)]
    if not known:
        return {}
    hits = np.concatenate(known)  # [N, k]
    accuracy = {"accuracy": float(hits[:, 0].mean())}
    return accuracy if hits.shape[1] < TOP_K else accuracy | {"top5_accuracy": float(hits.any(axis=1).mean())}


def _hits(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if len(predictions) != len(labels) or len(labels) == 0 or labels.ndim != 1:
        raise ValueError(
            f"predictions of shape {predictions.shape} and labels of shape {labels.shape}: pass one class id for "
            "each item, and at least one item"
        )
    known = labels != IGNORED
    predictions, labels = predictions[known], labels[known]
    if np.issubdtype(predictions.dtype, np.floating):
        predictions = topk_predictions(torch.from_numpy(predictions), torch.from_numpy(labels)).numpy()  # [N, k]
    ranked = predictions if predictions.ndim > 1 else predictions[:, None]
    return ranked[:, :TOP_K] == labels[:, None]
