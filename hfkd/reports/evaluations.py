"""Marks evaluations of other datasets, or of other weights than those of the current step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers.trainer_utils import has_length

from hfkd.data.first_rows import sets_by_name
from hfkd.evaluation.weights import step_of_weights
from hfkd.training.host import Host

# Keys of log entries that do not count as evaluations of the run: the number of rows of another dataset (-1: a
# stream), and the step of other weights. Values are numbers, as in the rest of the log.
OTHER_SET, OTHER_STEP = "other_set_rows", "weights_of_step"


def of_the_run(entry: Mapping[str, Any]) -> bool:
    """False for log entries with metrics of another dataset, or of other weights than those of their step."""
    return OTHER_SET not in entry and OTHER_STEP not in entry


class EvaluationMarks:
    """Marks log entries with metrics of another set than the run's own, or of the reloaded best weights.

    The run's own set is the trainer's `eval_dataset` at the start of training.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.own_set: Any = host.eval_dataset
        self._other: dict[str, float] = {}
        self._parts: list[Any] = []  # of the run's own sets, while Trainer evaluates one after the other

    @property
    def of_own_set(self) -> bool:
        """Whether the present evaluation is one of the run's own set."""
        return OTHER_SET not in self._other

    @contextmanager
    def evaluating(self, eval_dataset: Any) -> Iterator[None]:
        """Context in which logged metrics are those of `eval_dataset`."""
        outer = self._other, self._parts
        self._other = self._other_than_the_runs(eval_dataset)
        sets, own = sets_by_name(eval_dataset), sets_by_name(self.own_set)
        whole = isinstance(eval_dataset, dict) and _ids(sets) == _ids(own)
        self._parts = [*own.values()] if whole else []
        try:
            yield
        finally:
            self._other, self._parts = outer

    def mark(self, entry: dict[str, float]) -> None:
        entry.update(self._other)

    def _other_than_the_runs(self, eval_dataset: Any) -> dict[str, float]:
        """The marks of an evaluation on another set than the run's, or with other weights than those of this step."""
        host = self.host
        given = host.eval_dataset if eval_dataset is None else eval_dataset
        own = isinstance(given, str) or any(given is one for one in (self.own_set, *self._parts))
        step = step_of_weights(host.state, host.args, host.is_in_train)
        marks: dict[str, float] = {} if own else {OTHER_SET: len(given) if has_length(given) else -1}
        return marks if step == host.state.global_step else marks | {OTHER_STEP: step}


def _ids(sets: Mapping[str, Any]) -> dict[str, int]:
    return {name: id(one) for name, one in sets.items()}
