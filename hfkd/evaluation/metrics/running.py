"""Metrics that add up batches, whichever way Trainer hands over predictions."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Running(ABC):
    """For Trainer's `compute_metrics`, whatever `batch_eval_metrics` and `eval_do_concat_batches` are.

    A plain Trainer gets the metrics from the call that asks for a result. DistillationTrainer reads them once after
    its loop (`one_evaluation`): accelerate knows the last batch of its own loaders only.
    """

    in_batches: bool = False  # Trainer is to hand over each batch: the whole set would be too large

    def __init__(self) -> None:
        self._added = self._collecting = False

    @abstractmethod
    def add(self, predictions: Any, labels: Any) -> None:
        """Add a batch, or the whole set."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """The metrics of everything added since the last call, which is then forgotten."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was added."""

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        for predictions, labels in batches_of(prediction):
            self.add(predictions, labels)
        self._added = True
        return self.result() if compute_result and not self._collecting else {}

    @contextmanager
    def one_evaluation(self) -> Iterator[dict[str, float]]:
        """Context of one evaluation; the dict that it yields has the metrics at its end, {} if nothing was predicted.

        What an evaluation that was interrupted has left behind does not count.
        """
        found: dict[str, float] = {}
        self.reset()
        self._added, self._collecting = False, True
        try:
            yield found
            if self._added:
                found.update(self.result())
        finally:
            self._collecting = False


def batches_of(prediction: Any) -> list[tuple[Any, Any]]:
    """Predictions and labels of an `EvalPrediction`: one pair, or with `eval_do_concat_batches=False` one a batch."""
    predictions, labels = prediction.predictions, prediction.label_ids
    if isinstance(predictions, list) and isinstance(labels, list):
        return list(zip(predictions, labels, strict=True))
    return [(predictions, labels)]
