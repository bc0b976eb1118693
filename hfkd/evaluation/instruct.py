"""Several students on the five instruction sets: the flags, the loop, the table."""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hfkd.data.instructions import dolly_split
from hfkd.data.text_arguments import read_splits
from hfkd.evaluation.run import SEEDS, evaluate_sets
from hfkd.evaluation.scoring import Scores, markdown_table, students_table
from hfkd.evaluation.sets import HUB, SETS, instruct_sets
from hfkd.files import write_atomically
from hfkd.launch import processes

logger = logging.getLogger(__name__)


@dataclass
class InstructArguments:
    """Which sets, and how answers are sampled. The defaults are those of the published figures."""

    sets_from: str = field(default=HUB, metadata={"help": "Folder with <set>.jsonl files, or a Hub account."})
    sets: list[str] = field(default_factory=lambda: list(SETS), metadata={"help": f"Some of {', '.join(SETS)}."})
    dolly: str | None = field(
        default=None, metadata={"help": "databricks-dolly-15k, whose test split is scored; unset: that of sets_from."}
    )
    seeds: list[int] = field(default_factory=lambda: list(SEEDS), metadata={"help": "One set of answers a seed."})
    max_rows: int | None = field(default=None, metadata={"help": "Score the first rows of each set only: a quick try."})
    max_new_tokens: int = field(default=256, metadata={"help": "Tokens of an answer."})
    max_prompt_length: int = field(default=256, metadata={"help": "Tokens of a prompt; the rest is cut off."})
    no_repeat_ngram_size: int = field(default=6, metadata={"help": "No sequence of so many tokens twice; 0: any."})
    batch_size: int = field(default=32, metadata={"help": "Prompts answered at once on each process."})
    chat_template: bool = field(default=False, metadata={"help": "Write prompts with the tokenizer's chat template."})
    output_dir: str = field(default="runs/instruct", metadata={"help": "Folder for answers and scores."})

    def load(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Dataset]:
        """The sets that are there, each with `prompt` and `references`."""
        test = None if self.dolly is None else dolly_split(read_splits(self.dolly)["train"], tokenizer)["test"]
        return instruct_sets(
            self.sets_from,
            dolly_test=test,
            names=self.sets,
            tokenizer=tokenizer,
            chat_template=self.chat_template,
            max_rows=self.max_rows,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """For `TextGenerator`."""
        names = ("max_new_tokens", "max_prompt_length", "no_repeat_ngram_size", "batch_size")
        return {name: getattr(self, name) for name in names} | {"add_special_tokens": not self.chat_template}


def evaluate_students(
    names: Sequence[str], load: Callable[[str], tuple[Any, PreTrainedTokenizerBase]], args: InstructArguments
) -> dict[str, dict[str, Scores]]:
    """Score each student that `load` gives (model, tokenizer), one at a time; print and write the tables."""
    state, folder = processes(), Path(args.output_dir)
    folders = _folders(names)
    scores = {}
    for name in names:
        model, tokenizer = load(name)
        with state.main_process_first():
            sets = args.load(tokenizer)
        logger.info("%s: %s", name, {key: len(rows) for key, rows in sets.items()})
        model = model.to(state.device)
        scores[name] = evaluate_sets(model, tokenizer, sets, folder / folders[name], seeds=args.seeds, **args.settings)
        state.print(f"\n{name}\n\n{markdown_table(scores[name])}", flush=True)
        del model
        gc.collect()
    table = students_table(scores)
    state.print(f"\n{table}\nEvery answer is in {folder}", flush=True)
    if state.is_main_process:
        write_atomically(folder / "students.md", table.encode())
    return scores


def _folders(names: Sequence[str]) -> dict[str, str]:
    """A folder for each student, with a name of its own."""
    folders = {name: "-".join(part for part in Path(name).parts if part not in ("/", "..", ".")) for name in names}
    if len(set(folders.values())) < len(names):
        raise ValueError(f"the students {list(names)} would share a folder of answers: give each once")
    return folders
