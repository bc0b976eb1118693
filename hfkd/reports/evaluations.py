"""Which evaluations describe a run: those of its own evaluation set, of the weights of their step."""

from collections.abc import Mapping
from typing import Any

from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

# In an entry of the log, what else its metrics are of: another set of so many rows (-1: a stream), the weights of
# another step. Numbers, as all of the log. Such an entry is no evaluation of the run.
OTHER_SET, OTHER_STEP = "other_set_rows", "weights_of_step"


def of_the_run(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of the log is no evaluation, or one of the run's own set with the weights of its step."""
    return OTHER_SET not in entry and OTHER_STEP not in entry


class MarkedEvaluations(Trainer):
    """Trainer whose log says which evaluations are of another set than its own, or of the reloaded best weights.

    Its own set is the `eval_dataset` that it has when training starts. Nothing else about `evaluate` differs.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._other: dict[str, float] = {}
        super().__init__(*arguments, **keywords)
        self.own_set: Any = self.eval_dataset

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        self.own_set = self.eval_dataset
        return super().train(*arguments, **keywords)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        outer, self._other = self._other, self._other_than_the_runs(eval_dataset)
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._other = outer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        self.state.log_history[-1].update(self._other)

    def _other_than_the_runs(self, eval_dataset: Any) -> dict[str, float]:
        """The marks of an evaluation that is not of the run's own set, or not of the weights of this step."""
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        own = isinstance(given, str) or given is self.own_set
        step = step_of_weights(self.state, self.args, self.is_in_train)
        marks: dict[str, float] = {} if own else {OTHER_SET: len(given) if has_length(given) else -1}
        return marks if step == self.state.global_step else marks | {OTHER_STEP: step}


def step_of_weights(state: TrainerState, args: TrainingArguments, training: bool) -> int:
    """The step of the weights in memory, which `save_model` writes: the last one, or that of the reloaded best ones."""
    if args.load_best_model_at_end and state.best_model_checkpoint and not training:
        return int(state.best_model_checkpoint.rstrip("/").rpartition("-")[2])
    return state.global_step
