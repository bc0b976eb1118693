"""ROUGE-L of the student's generated answers, at every evaluation of a training run."""

import logging
import time
import weakref
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from transformers import Trainer, TrainerCallback

from hfkd.arguments import DistillationArguments
from hfkd.evaluation.generation import TextGenerator
from hfkd.evaluation.run import check_seeds, evaluate_sets
from hfkd.evaluation.sets import with_references
from hfkd.evaluation.weights import step_of_weights
from hfkd.utils.dependent_settings import refuse_without_effect
from hfkd.utils.flags import at_least_one, flag
from hfkd.utils.temporary_settings import setting

METRIC = "eval_rougeL"
logger = logging.getLogger(__name__)


@dataclass
class RougeArguments:
    """Choice of the best checkpoint by ROUGE-L of its responses to dev prompts, as in MiniLLM and DSKD."""

    eval_rouge: bool = flag(
        False, "Compute ROUGE-L on the dev set at each evaluation, and load the best checkpoint at the end."
    )
    rouge_seeds: list[int] = flag(lambda: [10], "Sampling seeds of the answers; DSKD averages three.")
    rouge_max_new_tokens: int = flag(256, "Maximum number of tokens of an answer.")
    rouge_tokenizer: Literal["rouge_score", "unicode"] = flag(
        "rouge_score", "rouge_score, as published, reads a-z and 0-9; unicode every script."
    )

    def __post_init__(self) -> None:
        at_least_one(self, "rouge_max_new_tokens")
        check_seeds(self.rouge_seeds, "rouge_seeds")
        refuse_without_effect(self)

    def best_by_rouge(self, args: DistillationArguments, given: Collection[str] = ()) -> DistillationArguments:
        """With --eval_rouge, `args` that load the checkpoint with the best dev ROUGE-L at the end.

        Settings whose names are in `given` (those set by the user, from `parse`) are kept.
        """
        if not self.eval_rouge:
            return args
        best: dict[str, Any] = {"load_best_model_at_end": True}
        if "metric_for_best_model" in given:
            logger.info(
                "The best checkpoint is chosen by metric_for_best_model=%s, as set.", args.metric_for_best_model
            )
        else:
            best |= {"metric_for_best_model": METRIC, "greater_is_better": True}
        return replace(args, **{name: value for name, value in best.items() if name not in given})

    def check_rows(self, dev: Dataset | None) -> None:
        """Raise ValueError if --eval_rouge has no dev rows, before networks are loaded and teachers stored."""
        if self.eval_rouge and dev is None:
            raise ValueError("eval_rouge needs dev rows: use a dataset with a split dev or validation")

    def add_to(self, trainer: Trainer, dev: Dataset | None, **settings: Any) -> None:
        """Add the callback to `trainer` if --eval_rouge is set. `dev` has the columns `prompt` and `response`."""
        self.check_rows(dev)
        if not self.eval_rouge or dev is None:
            return
        settings |= {"max_new_tokens": self.rouge_max_new_tokens, "rouge_tokenizer": self.rouge_tokenizer}
        trainer.add_callback(RougeCallback(trainer, dev, self.rouge_seeds, **settings))


class RougeCallback(TrainerCallback):
    """Answer `dev` at each evaluation: logs `eval_rougeL`, which `metric_for_best_model` may name. An evaluation of a
    set of its own, `trainer.evaluate(rows)`, has no such score, as it would be that of `dev`.

    The answers of step n are in `<output_dir>/dev/step-n`. Sampled as on test, but without the n-gram block, which
    MiniLLM and DSKD use on test only, and in the precision of evaluations (`float32_evaluation`). `settings` are
    `TextGenerator`'s. Add it before callbacks that read the log. A student sharded by FSDP 2 generates too, all ranks
    together. Raises ValueError for settings that do not fit the model, and under FSDP 1.
    """

    def __init__(
        self,
        trainer: Trainer,
        dev: Dataset,
        seeds: Sequence[int],
        rouge_tokenizer: str = "rouge_score",
        **settings: Any,
    ) -> None:
        if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
            raise ValueError("eval_rouge cannot generate under FSDP 1: set fsdp_version: 2, or leave eval_rouge out")
        check_seeds(seeds)  # now, not at the first evaluation
        self.trainer: Any = weakref.proxy(trainer)  # which has this callback, and is to be freed with it
        self.seeds, self.rows = seeds, with_references(dev)
        self.rouge_tokenizer = rouge_tokenizer
        self.settings = {"no_repeat_ngram_size": 0, "batch_size": trainer.args.eval_batch_size} | settings
        TextGenerator(*self._writer, **self.settings)  # raises now if settings do not fit

    @property
    def _writer(self) -> tuple[Any, Any]:
        return self.trainer.accelerator.unwrap_model(self.trainer.model), self.trainer.processing_class

    def _precision(self) -> AbstractContextManager[None]:
        """Context in which the student computes as in the trainer's evaluations: by default without autocast."""
        network = self.trainer.accelerator.unwrap_model(self.trainer.model, keep_torch_compile=False)
        plain, wanted = vars(network).get("_original_forward"), getattr(self.trainer.args, "float32_evaluation", False)
        without = wanted and plain is not None and not self.trainer.is_fsdp_enabled
        return setting(network, forward=plain) if without else nullcontext()

    def on_evaluate(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        marks: Any = getattr(self.trainer, "marks", None)  # DistillationTrainer's; a plain Trainer has none
        if marks is not None and not marks.of_own_set:
            return
        step = step_of_weights(state, args, self.trainer.is_in_train)  # after training maybe that of the best ones
        start, folder = time.monotonic(), Path(args.output_dir) / "dev" / f"step-{step}"
        scored: dict[str, Any] = {"seeds": self.seeds, "rouge_tokenizer": self.rouge_tokenizer}
        model, tokenizer = self._writer
        with self._precision():
            scores = evaluate_sets(model, tokenizer, {"dev": self.rows}, folder, **scored, **self.settings)
        found = {METRIC: scores["dev"]["rougeL"], "eval_rouge_runtime": time.monotonic() - start}
        keywords["metrics"].update(found)  # by which Trainer chooses the best checkpoint
        self.trainer.log(found)
