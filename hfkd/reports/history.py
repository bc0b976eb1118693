"""Reading `TrainerState.log_history`, the only record of a run that transformers restores from a checkpoint."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from transformers import TrainingArguments

from hfkd.reports.evaluations import of_the_run
from hfkd.utils.metric_names import is_divergence

Entry = Mapping[str, Any]
TEACHER_SCORE = re.compile(r"teacher(_\d+)?_accuracy(_.*)?")

# positions, and counts since training started, of which the last value is used when training entries are merged
_LAST_WINS = (
    *("epoch", "step", "learning_rate", "num_input_tokens_seen", "skipped_steps"),
    *("train_runtime", "train_tokens_per_second"),  # beside each loss with include_num_input_tokens_seen
)


@dataclass(frozen=True)
class Choice:
    """The metric by which the best evaluation is chosen, and its direction."""

    metric: str
    greater_is_better: bool

    @classmethod
    def of(cls, args: TrainingArguments, metric: str) -> "Choice":
        """The choice of Trainer's best checkpoint; by `metric` if `metric_for_best_model` is not set."""
        named = args.metric_for_best_model
        if named is None:
            return cls.by_name(metric)
        assert args.greater_is_better is not None  # TrainingArguments sets it with the metric
        return cls(named if named.startswith("eval_") else f"eval_{named}", args.greater_is_better)

    @classmethod
    def by_name(cls, metric: str) -> "Choice":
        """For a metric without a given direction Trainer's rule, by which what is not called a loss is a score."""
        return cls(metric, not metric.endswith("loss") and not is_divergence(metric))


def epoch_rows(log_history: Iterable[Entry]) -> list[dict[str, Any]]:
    """One row per evaluation (per epoch, if training has none) with its metrics and those of training before it.
    Training metrics (`loss`, `ce`, `kd`, ...) are means over the training entries since the last row, each weighted by
    the steps since the entry or row before it: over all steps of the row if an entry ends with it, as with
    `logging_strategy="epoch"`.

    Evaluations at the same step (of several sets, or another one after training) share a row. Left out are evaluations
    of other sets or weights (`other_evaluations`), training after the last evaluation, and the final summary of a
    session (`train_runtime`, ...), which covers only its own session.
    """
    history = [entry for entry in log_history if of_the_run(entry)]
    per_epoch = not _evaluated_while_training(history)
    rows: list[dict[str, Any]] = []
    training: list[Entry] = []
    for entry in history:
        if "loss" in entry:
            if per_epoch and training and _epoch_number(entry) > _epoch_number(training[-1]):
                rows.append(_mean(training, rows))
                training = []
            training.append(entry)
        elif _is_closing(entry):
            continue
        elif not training and rows and rows[-1].get("step") == entry.get("step"):
            rows[-1].update(entry)
        elif is_evaluation(entry):
            rows.append({**(_mean(training, rows) if training else {}), **entry})
            training = []
    if training and per_epoch:
        rows.append(_mean(training, rows))
    return rows


def other_evaluations(log_history: Iterable[Entry]) -> list[Entry]:
    """The entries with metrics of another set than the run's, or of other weights than those of their step."""
    return [entry for entry in log_history if not of_the_run(entry)]


def _evaluated_while_training(history: Iterable[Entry]) -> bool:
    """Whether there are evaluations during training; one after its end does not count."""
    ended = False
    for entry in history:
        if "loss" in entry or _is_closing(entry):
            ended = "loss" not in entry
        elif is_evaluation(entry) and not ended:
            return True
    return False


def _is_closing(entry: Entry) -> bool:
    return "train_runtime" in entry and "loss" not in entry


def is_evaluation(entry: Entry) -> bool:
    """Whether an entry or a row has evaluation metrics."""
    return any(key.startswith("eval_") for key in entry)


def teacher_scores(log_history: Iterable[Entry]) -> dict[str, float]:
    """The teacher's scores on the evaluation set: `teacher_accuracy`, ...; empty if not measured."""
    return {k: v for entry in log_history for k, v in entry.items() if TEACHER_SCORE.fullmatch(k)}


def best_row(rows: Sequence[Entry], choice: Choice) -> Entry | None:
    """The first row with the best value of the metric, without the evaluation before training (`eval_on_start`)."""
    scored = [row for row in rows if is_number(row.get(choice.metric)) and row.get("step") != 0]
    if not scored:
        return None
    return (max if choice.greater_is_better else min)(scored, key=lambda row: row[choice.metric])


def last_row(rows: Sequence[Entry], metric: str) -> Entry | None:
    """The last row that has `metric`."""
    return next((row for row in reversed(rows) if is_number(row.get(metric))), None)


def end_losses(log_history: Iterable[Entry]) -> dict[str, dict[str, Any] | None]:
    """The `first` and `last` logged training loss, each `{"step", "loss"}`; of single steps if every step is logged."""
    logged = [{"step": entry.get("step"), "loss": entry["loss"]} for entry in log_history if "loss" in entry]
    return {"first": logged[0] if logged else None, "last": logged[-1] if logged else None}


def series(log_history: Iterable[Entry], key: str) -> tuple[list[float], list[float]]:
    """Epochs and finite values of one logged quantity, for plotting."""
    points = [
        (float(entry["epoch"]), float(entry[key]))
        for entry in log_history
        if "epoch" in entry and is_number(entry.get(key))
    ]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _epoch_number(entry: Entry) -> int:
    # step / steps_per_epoch * epochs is a float: 2.0000000001 is still the end of the second epoch
    return math.ceil(float(entry.get("epoch") or 0.0) - 1e-6)


def is_number(value: Any) -> bool:
    """Whether a logged value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _mean(training: list[Entry], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge training entries, each weighted by the number of steps taken since the previous one."""
    steps = [0 if not rows else rows[-1].get("step", 0), *(entry.get("step", 0) for entry in training)]
    skipped = [0 if not rows else rows[-1].get("skipped_steps", 0), *(e.get("skipped_steps", 0) for e in training)]
    spans = zip(pairwise(steps), pairwise(skipped), strict=True)
    # a resumed process counts skipped steps from 0
    weights = [max(to - since, 1) - (now - before if now >= before else now) for (since, to), (before, now) in spans]
    merged = {key: value for entry in training for key, value in entry.items()}  # some parts are not in every entry
    for key in merged.keys() - set(_LAST_WINS):
        parts = [
            (weight, entry[key])
            for weight, entry in zip(weights, training, strict=True)
            if weight > 0 and isinstance(entry.get(key), (int, float))
        ]
        if parts:
            merged[key] = sum(weight * value for weight, value in parts) / sum(weight for weight, _ in parts)
    return merged
