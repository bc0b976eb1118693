"""Evaluates several students on the five instruction sets: flags, loop, table."""

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from hfkd.data.instructions import dolly_rows
from hfkd.data.text_files import read_splits
from hfkd.evaluation.resume import read_scores, read_students, write_students
from hfkd.evaluation.run import SEEDS, check_seeds, evaluate_sets
from hfkd.evaluation.scoring import Scores
from hfkd.evaluation.sets import HUB, SETS, check_sets, instruct_sets
from hfkd.evaluation.tables import markdown_table, students_table
from hfkd.experiments.earlier_run import trained_with_template, warn_of_template
from hfkd.utils.argument_types import NotNegative, fitting
from hfkd.utils.files import write_atomically
from hfkd.utils.flags import at_least_one, flag
from hfkd.utils.launch import processes

logger = logging.getLogger(__name__)


@dataclass
class InstructArguments:
    """Evaluation sets, and sampling of answers. The defaults are those of the published results."""

    sets_from: str = flag(HUB, "Folder with <set>.jsonl files, or a Hub account.")
    sets: list[str] = flag(lambda: list(SETS), f"Some of {', '.join(SETS)}.")
    dolly: str | None = flag(None, "databricks-dolly-15k, whose test split is evaluated; unset: that of sets_from.")
    seeds: list[int] = flag(lambda: list(SEEDS), "Sampling seeds, with one set of answers for each.")
    max_rows: int | None = flag(None, "Evaluate only the first rows of each set, for a quick test.")
    max_new_tokens: int = flag(256, "Maximum number of tokens of an answer.")
    max_prompt_length: int = flag(256, "Maximum number of tokens of a prompt; longer prompts are truncated.")
    no_repeat_ngram_size: int = flag(6, "Forbid repetition of n-grams of this many tokens; 0: allow it.")
    batch_size: int = flag(32, "Prompts per batch on each process.")
    chat_template: bool = flag(False, "Format prompts with the tokenizer's chat template.")
    rouge_tokenizer: Literal["rouge_score", "unicode"] = flag(
        "rouge_score", "rouge_score, as published, reads a-z and 0-9; unicode every script."
    )
    output_dir: str = flag("runs/instruct", "Folder for answers and scores.")

    def __post_init__(self) -> None:
        at_least_one(self, "max_rows", "max_new_tokens", "max_prompt_length", "batch_size")
        fitting(type(self).__name__, "no_repeat_ngram_size", self.no_repeat_ngram_size, NotNegative)
        check_seeds(self.seeds)
        check_sets(self.sets_from, self.sets)

    def load(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Dataset]:
        """The available sets, each with the columns `prompt` and `references`."""
        test = None if self.dolly is None else dolly_rows(self._dolly(self.dolly), tokenizer)["test"]
        return instruct_sets(
            self.sets_from,
            dolly_test=test,
            names=self.sets,
            tokenizer=tokenizer,
            chat_template=self.chat_template,
            max_rows=self.max_rows,
        )

    @staticmethod
    def _dolly(name: str) -> Dataset:
        splits = read_splits(name)
        if len(splits) > 1:
            raise ValueError(
                f"dolly={name} has the splits {sorted(splits)}, but the test rows are taken from the whole file of "
                "databricks-dolly-15k: pass that file, or leave dolly out"
            )
        return next(iter(splits.values()))

    @property
    def settings(self) -> dict[str, Any]:
        """Settings for `TextGenerator`."""
        names = ("max_new_tokens", "max_prompt_length", "no_repeat_ngram_size", "batch_size")
        return {name: getattr(self, name) for name in names} | {"add_special_tokens": not self.chat_template}


def evaluate_students(
    names: Sequence[str], load: Callable[[str], tuple[Any, PreTrainedTokenizerBase]], args: InstructArguments
) -> dict[str, dict[str, Scores]]:
    """Evaluate each student, loaded by `load` as (model, tokenizer), one at a time; print and write the tables.

    The tables include students and sets of earlier calls with the same `output_dir`. Returns this call's scores.
    """
    state, folder = processes(), Path(args.output_dir).expanduser()
    names = [str(Path(name)) for name in names]  # a trailing slash does not make another student
    folders = _folders(names, read_students(folder))
    scores = {}
    for name in names:
        model, tokenizer = load(name)
        with state.main_process_first():
            sets = args.load(tokenizer)
        logger.info("%s: %s", name, {key: len(rows) for key, rows in sets.items()})
        _warn_of_template(name, tokenizer, args.chat_template)
        weights, answers = _fingerprint(model), folder / folders[name]
        scored: dict[str, Any] = {"seeds": args.seeds, "weights": weights, "rouge_tokenizer": args.rouge_tokenizer}
        scores[name] = evaluate_sets(model.to(state.device), tokenizer, sets, answers, **scored, **args.settings)
        if state.is_main_process:
            print(f"\n{name}\n\n{markdown_table(read_scores(answers))}", flush=True)
        del model
        gc.collect()
    if state.is_main_process:
        folders = read_students(folder) | folders  # with those of calls that have ended meanwhile
        write_students(folder, folders)
        table = students_table({name: read_scores(folder / place) for name, place in folders.items()})
        write_atomically(folder / "students.md", table.encode())
        print(f"\n{table}\nEvery answer is in {folder}", flush=True)
    return scores


def _warn_of_template(name: str, tokenizer: PreTrainedTokenizerBase, chat_template: bool) -> None:
    """Warn if prompts are, or may be, formatted differently from the student's training."""
    if trained_with_template(name) is None and tokenizer.chat_template and not chat_template:
        logger.warning(
            "%s: its tokenizer has a chat template, but the prompts are formatted without it. If the student was "
            "trained with the template, its scores are meaningless: pass --chat_template",
            name,
        )
    warn_of_template(name, chat_template, "is evaluated")


def _fingerprint(model: nn.Module) -> str:
    """A hash of the weights, since a student may be trained further under the same name."""
    digest = xxhash.xxh3_64()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _folders(names: Sequence[str], earlier: Mapping[str, str]) -> dict[str, str]:
    """A unique folder name for each student, including those of earlier calls."""
    mine = {name: "-".join(part for part in Path(name).parts if part not in ("/", "..", ".")) for name in names}
    folders = {**earlier, **mine}
    if len(mine) < len(names) or len(set(folders.values())) < len(folders):
        raise ValueError(
            f"the students {list(dict.fromkeys([*earlier, *names]))} would share a folder of answers: pass each "
            "once, or choose another output_dir"
        )
    return folders
