"""`results.json`: settings, results and cost of a run, updated during training."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length
from transformers.utils import logging

from hfkd.evaluation.weights import step_of_weights
from hfkd.reports.environment import environment
from hfkd.reports.history import (
    Choice,
    Entry,
    best_row,
    end_losses,
    epoch_rows,
    is_evaluation,
    last_row,
    other_evaluations,
    teacher_scores,
)
from hfkd.utils.json_file import jsonable, write_json
from hfkd.utils.launch import batch_sizes

RESULTS_NAME = "results.json"
logger = logging.get_logger(__name__)


@dataclass
class Session:
    """The contribution of one process to a run. `seconds` is None if it is not known."""

    first_step: int
    last_step: int
    items: int | None = 0
    seconds: float | None = 0.0
    evaluation_seconds: float = 0.0


class ResultsCallback(TrainerCallback):
    """Keep `results.json` in `args.output_dir` up to date: after each evaluation and checkpoint, and at the end.

    The file: `config`, `environment`, `seed`, `status` ("running", "finished" or "failed"), `epochs` (`epoch_rows`),
    `best`, `last` and `saved` (the evaluation of the weights that are saved; see below), `best_by`, `losses` (first and
    last logged), `teacher_accuracy` (on the evaluation set, of several teachers and sets each; null where it was not
    measured), `images_per_second`, `wall_time_seconds`, `train_steps`, `train_epochs` (null where the training loader
    has no length: Trainer's epochs then are shares of `max_steps`), `sessions`, and, where there were any,
    `other_evaluations`. A killed run keeps the status "running"; for one that diverged, `failure` describes how.

    `best` is chosen like Trainer's best checkpoint, by `metric_for_best_model` and `greater_is_better`; if those are
    not set, by `metric`. `best`, `last` and `saved` have the epoch, the metric that chooses, and `metric`:
    `{"epoch", "accuracy"}` for "eval_accuracy" alone.

    Resume: `epochs`, `best` and `last` come from `state.log_history`, which transformers restores from the checkpoint,
    so they are complete. Time is not: each process ("session") writes its steps and seconds to `sessions`, and a
    resumed one reads those of its predecessors from the file. Steps lost between the last checkpoint and a kill count
    as time and as images; time after a killed run's last write does not. If the file is missing, the earlier session
    has `seconds: null`, and so has `wall_time_seconds`. A run from step 0 starts a new file.

    `images_per_second` is over training time, evaluations excluded; `items_name` replaces "images" in the name. Time
    begins with the first step: the teacher's scan, the outputs stored of it and its accuracy come before.
    Only the world's process zero reads, writes or measures; nothing here runs per step.
    """

    def __init__(self, config: Mapping[str, Any], metric: str = "eval_accuracy", items_name: str = "images") -> None:
        self.config = jsonable(config, "config")  # now, not at the first evaluation
        self.metric = metric
        self.items_name = items_name
        self._environment: dict[str, Any] = {}
        self._earlier: list[Session] = []
        self._session: Session | None = None
        self._started = 0.0
        self._first_epoch = 0.0
        self._loader: Any = None
        self._finished = False
        self._failure: str | None = None
        self._warned = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self._environment = environment(args.device)
        self._earlier = _read_sessions(_path(args), state) if state.global_step else []
        self._session = Session(state.global_step, state.global_step)
        self._started = time.monotonic()
        self._first_epoch, self._loader = state.epoch or 0.0, kwargs.get("train_dataloader")
        self._finished, self._failure = False, None

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._session is not None and not self._finished:
            runtimes = [value for key, value in (metrics or {}).items() if key.endswith("_runtime")]
            self._session.evaluation_seconds += sum(runtimes)
        self._write(args, state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # a run resumed from this checkpoint needs the time spent so far
        self._write(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._measure(args, state)
        self._finished = True
        self._write(args, state)

    def fail(self, args: TrainingArguments, state: TrainerState, failure: str) -> None:
        """Record that the run diverged, and how."""
        self._failure = failure
        self._write(args, state)

    def _write(self, args: TrainingArguments, state: TrainerState) -> None:
        if self._session is None:  # not process zero, or `evaluate` without `train`: keep the file unchanged
            return
        if not self._finished:  # an evaluation after training adds its metrics, not its time
            self._measure(args, state)
        write_json(_path(args), self._payload(args, state))

    def _measure(self, args: TrainingArguments, state: TrainerState) -> None:
        if self._session is None:
            return
        self._session.seconds = time.monotonic() - self._started
        self._session.last_step = state.global_step
        # full batches, but at most the number of samples: the last batch of an epoch may be smaller
        batch = batch_sizes(args, state)["batch_size"]
        items = (state.global_step - self._session.first_step) * batch
        per_epoch = _items_per_epoch(self._loader)
        if per_epoch is not None:
            items = min(items, round(((state.epoch or 0.0) - self._first_epoch) * per_epoch))
        self._session.items = items

    def _payload(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
        assert self._session is not None
        rows = epoch_rows(state.log_history)
        choice = Choice.of(args, self.metric)
        names = tuple(dict.fromkeys([choice.metric, self.metric]))
        step = step_of_weights(state, args, training=False) if self._finished else None
        self._warn_of_missing(choice.metric, rows)
        sessions = [*self._earlier, self._session]
        others = other_evaluations(state.log_history)
        return {
            "config": {k: batch_sizes(args, state).get(k, v) for k, v in self.config.items()},
            "environment": self._environment,
            "seed": args.seed,
            "status": "failed" if self._failure else "finished" if self._finished else "running",
            **({"failure": self._failure} if self._failure else {}),
            "epochs": rows,
            "best": _score(best_row(rows, choice), names),
            "last": _score(last_row(rows, choice.metric), names),
            "saved": _score(next((row for row in rows if row.get("step") == step), None), names),
            "best_by": {"metric": choice.metric, "greater_is_better": choice.greater_is_better},
            "losses": end_losses(state.log_history),
            **({"teacher_accuracy": None} | teacher_scores(state.log_history)),
            f"{self.items_name}_per_second": _items_per_second(sessions),
            "wall_time_seconds": _wall_time(sessions),
            "train_steps": state.global_step,
            "train_epochs": state.epoch if self._loader is None or has_length(self._loader) else None,
            "sessions": [asdict(session) for session in sessions],
            **({"other_evaluations": others} if others else {}),
        }

    def _warn_of_missing(self, metric: str, rows: list[dict[str, Any]]) -> None:
        evaluated = [row for row in rows if is_evaluation(row)]
        if evaluated and last_row(rows, metric) is None and not self._warned:
            self._warned = True
            logger.warning(
                f"no evaluation logged a finite {metric!r}, so that results.json has no best and last: pass "
                f"ResultsCallback(metric=...) one of {sorted(k for k in evaluated[-1] if k.startswith('eval_'))}"
            )


def _score(row: Entry | None, metrics: tuple[str, ...]) -> dict[str, Any] | None:
    """The epoch of an evaluation and its metrics; None if it has none of them."""
    found = {} if row is None else {m.removeprefix("eval_"): row[m] for m in metrics if row.get(m) is not None}
    return {"epoch": row.get("epoch"), **found} if row is not None and found else None


def _path(args: TrainingArguments) -> Path:
    return Path(args.output_dir or ".") / RESULTS_NAME


def _read_sessions(path: Path, state: TrainerState) -> list[Session]:
    """The sessions before a resume; a single one of unknown length if the file is unreadable or of another run."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        sessions = [Session(**session) for session in stored["sessions"]]
        its, mine = ((losses or {}).get("first") for losses in (stored.get("losses"), end_losses(state.log_history)))
        if its and mine and its != jsonable(mine):
            raise ValueError(f"it is from another run, whose first loss was {its} instead of {mine}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning(
            f"resuming at step {state.global_step}, but the time spent so far cannot be read from {str(path)!r} "
            f"({error!r}): wall_time_seconds will be null. Keep results.json with the checkpoints to avoid this."
        )
        return [Session(0, state.global_step, items=None, seconds=None)]
    return sessions


def _wall_time(sessions: list[Session]) -> float | None:
    seconds = [session.seconds for session in sessions]
    return None if None in seconds else sum(second for second in seconds if second is not None)


def _items_per_second(sessions: list[Session]) -> float | None:
    known = [
        (s.items, s.seconds - s.evaluation_seconds) for s in sessions if s.items is not None and s.seconds is not None
    ]
    seconds = sum(second for _, second in known)
    return sum(items for items, _ in known) / seconds if seconds > 0 else None


def _items_per_epoch(dataloader: Any) -> int | None:
    """Number of samples of the innermost sampler in an epoch; accelerate nests batch samplers."""
    sampler: Any = getattr(dataloader, "batch_sampler", None)
    while hasattr(sampler, "batch_sampler"):
        sampler = sampler.batch_sampler
    try:
        return len(sampler.sampler)
    except (AttributeError, TypeError):  # a stream, or a custom batch sampler
        return None
