"""Reading `TrainerState.log_history`, the only record of a run that transformers restores from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Entry = Mapping[str, Any]

# of several training entries in one row, these are a position, not a quantity to average
_LAST_WINS = ("epoch", "step", "learning_rate", "num_input_tokens_seen")


def epoch_rows(log_history: Iterable[Entry]) -> list[dict[str, Any]]:
    """One row per evaluation (per epoch where nothing was evaluated): its metrics, and the training logged before it.

    Training quantities (`loss`, `ce`, `kd`, ...) are means over the steps since the last row, so they do not depend on
    `logging_steps`. Two evaluations at one step (several evaluation sets, or one more after training) share a row.
    The closing summary of a sitting (`train_runtime`, ...) is left out: it knows only its own sitting.
    """
    rows: list[dict[str, Any]] = []
    training: list[Entry] = []
    for entry in log_history:
        if "train_runtime" in entry:
            continue
        if "loss" in entry:
            if training and _epoch_number(entry) > _epoch_number(training[-1]):
                rows.append(_mean(training, rows))
                training = []
            training.append(entry)
        elif not training and rows and rows[-1].get("step") == entry.get("step"):
            rows[-1].update(entry)
        elif is_evaluation(entry):
            rows.append({**(_mean(training, rows) if training else {}), **entry})
            training = []
    if training:
        rows.append(_mean(training, rows))
    return rows


def is_evaluation(entry: Entry) -> bool:
    """Whether an entry or a row carries evaluation metrics."""
    return any(key.startswith("eval_") for key in entry)


def best_row(rows: Sequence[Entry], metric: str) -> Entry | None:
    """The first row with the best `metric`: the largest, or the smallest if its name ends in `loss`, as in Trainer."""
    scored = [row for row in rows if _is_number(row.get(metric))]
    if not scored:
        return None
    return (min if metric.endswith("loss") else max)(scored, key=lambda row: row[metric])


def last_row(rows: Sequence[Entry], metric: str) -> Entry | None:
    """The last row that has `metric`."""
    return next((row for row in reversed(rows) if _is_number(row.get(metric))), None)


def end_losses(log_history: Iterable[Entry]) -> dict[str, dict[str, Any] | None]:
    """`first` and `last` logged training loss, each `{"step", "loss"}`; of single steps where every step is logged."""
    logged = [{"step": entry.get("step"), "loss": entry["loss"]} for entry in log_history if "loss" in entry]
    return {"first": logged[0] if logged else None, "last": logged[-1] if logged else None}


def series(log_history: Iterable[Entry], key: str) -> tuple[list[float], list[float]]:
    """Epochs and finite values of one logged quantity, for plotting."""
    points = [
        (float(entry["epoch"]), float(entry[key]))
        for entry in log_history
        if "epoch" in entry and _is_number(entry.get(key))
    ]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _epoch_number(entry: Entry) -> int:
    # step / steps_per_epoch * epochs is a float: 2.0000000001 is still the end of the second epoch
    return math.ceil(float(entry.get("epoch") or 0.0) - 1e-6)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _mean(training: list[Entry], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge training entries: each stands for the steps since the one before it."""
    steps = [0 if not rows else rows[-1].get("step", 0), *(entry.get("step", 0) for entry in training)]
    weights = [max(after - before, 1) for before, after in pairwise(steps)]
    merged = dict(training[-1])
    for key in merged.keys() - set(_LAST_WINS):
        parts = [
            (weight, entry[key])
            for weight, entry in zip(weights, training, strict=True)
            if isinstance(entry.get(key), (int, float))
        ]
        if parts:
            merged[key] = sum(weight * value for weight, value in parts) / sum(weight for weight, _ in parts)
    return merged
