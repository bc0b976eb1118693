"""Which evaluations describe a run: those of its own evaluation set, of the weights of their step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers.trainer_utils import has_length

from hfkd.evaluation.weights import step_of_weights
from hfkd.training.host import Host

# In an entry of the log, what else its metrics are of: another set of so many rows (-1: a stream), the weights of
# another step. Numbers, as all of the log. Such an entry is no evaluation of the run.
OTHER_SET, OTHER_STEP = "other_set_rows", "weights_of_step"


def of_the_run(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of the log is no evaluation, or one of the run's own set with the weights of its step."""
    return OTHER_SET not in entry and OTHER_STEP not in entry


class EvaluationMarks:
    """Says in the log which evaluations are of another set than the run's own, or of the reloaded best weights.

    Its own set is the `eval_dataset` that the trainer has when training starts.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.own_set: Any = host.eval_dataset
        self._other: dict[str, float] = {}

    @contextmanager
    def evaluating(self, eval_dataset: Any) -> Iterator[None]:
        """Within it what is logged is of `eval_dataset`."""
        outer, self._other = self._other, self._other_than_the_runs(eval_dataset)
        try:
            yield
        finally:
            self._other = outer

    def mark(self, entry: dict[str, float]) -> None:
        entry.update(self._other)

    def _other_than_the_runs(self, eval_dataset: Any) -> dict[str, float]:
        """The marks of an evaluation that is not of the run's own set, or not of the weights of this step."""
        host = self.host
        given = host.eval_dataset if eval_dataset is None else eval_dataset
        own = isinstance(given, str) or given is self.own_set
        step = step_of_weights(host.state, host.args, host.is_in_train)
        marks: dict[str, float] = {} if own else {OTHER_SET: len(given) if has_length(given) else -1}
        return marks if step == host.state.global_step else marks | {OTHER_STEP: step}
