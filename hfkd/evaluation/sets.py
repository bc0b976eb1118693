"""The five instruction test sets of MiniLLM and DSKD, from a folder or from the Hub."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import hf_hub_download
from transformers import PreTrainedTokenizerBase

from hfkd.data.instructions import accepted_columns, to_prompts
from hfkd.data.text_files import read_jsonl

logger = logging.getLogger(__name__)

HUB = "MiniLLM"


@dataclass(frozen=True)
class InstructSet:
    """One test set: its name in the papers' tables, its repository on the Hub, and the number of rows evaluated."""

    label: str
    repository: str
    file: str
    rows: int


# In the papers' order. Note that the papers' SInst is self-instruct; the folder `sinst` is their S-NI.
SETS = {
    "dolly": InstructSet("Dolly", "dolly", "valid.jsonl", 500),
    "self-inst": InstructSet("SInst", "self-inst", "valid.jsonl", 242),
    "vicuna": InstructSet("Vicuna", "Vicuna", "valid.jsonl", 80),
    "sinst": InstructSet("S-NI", "sinst", "11_/valid.jsonl", 1694),
    "uinst": InstructSet("UnNI", "uinst", "11_/valid.jsonl", 10000),
}


def instruct_sets(
    source: str | Path = HUB,
    *,
    dolly_test: Dataset | None = None,
    names: Sequence[str] = tuple(SETS),
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat_template: bool = False,
    max_rows: int | None = None,
) -> dict[str, Dataset]:
    """The available test sets, in the papers' order, each with `prompt` and `references` (a list of texts).

    `source` is a folder with `<name>.jsonl`, or with the layout of the Hub (`<name>/valid.jsonl`,
    `sinst/11_/valid.jsonl`), or the Hub account that has the repositories. `dolly_test`
    (`dolly_rows(...)["test"]`) replaces the Dolly file. Only the first 10,000 rows of UnNI are used, as published, and
    at most `max_rows` of each set. A set that is missing in a folder is skipped with a warning. Raises ValueError for
    an unknown name, a missing folder, or if no set is found.
    """
    check_sets(source, names)
    found = {}
    for name in (name for name in SETS if name in names):
        if name == "dolly" and dolly_test is not None:
            rows: Dataset | None = dolly_test
        else:
            rows = _read(source, name)
        if rows is None:
            logger.warning("The set %s (%s) is missing in %s and is skipped.", name, SETS[name].label, source)
            continue
        rows = rows.select(range(min(len(rows), SETS[name].rows, max_rows or len(rows))))
        found[name] = with_references(rows, tokenizer, chat_template)
    if not found:
        raise ValueError(
            f"{source} has none of {list(names)}: put <name>.jsonl files there, or pass {HUB!r}, on the Hub"
        )
    return found


def check_sets(source: str | Path, names: Sequence[str]) -> None:
    """Raise ValueError for an unknown name or none, and for a `source` that is neither a folder nor a Hub account."""
    unknown = [name for name in names if name not in SETS]
    if unknown or not names:
        what = f"unknown instruction set {unknown[0]!r}" if unknown else "there is no instruction set"
        raise ValueError(f"{what}: pass some of {list(SETS)}")
    account = not isinstance(source, Path) and source.replace("-", "").replace("_", "").isalnum()
    if not account and not Path(source).expanduser().is_dir():
        raise ValueError(
            f"{source} is not a folder: pass one with <name>.jsonl files, or a Hub account such as {HUB!r}"
        )


def _read(source: str | Path, name: str) -> Dataset | None:
    """The rows of one set; None if the folder has no file for it."""
    wanted, folder = SETS[name], Path(source).expanduser()
    if folder.is_dir():
        places = (folder / f"{name}.jsonl", folder / name / wanted.file, folder / wanted.repository / wanted.file)
        path = next((place for place in places if place.is_file()), None)
        return None if path is None else read_jsonl(path)
    return read_jsonl(hf_hub_download(f"{source}/{wanted.repository}", wanted.file, repo_type="dataset"))


def with_references(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase | None = None, chat_template: bool = False
) -> Dataset:
    """Convert rows with any accepted columns except `text` to `prompt` and `references`, the right answers.

    Several references are a list of texts; for chat turns the content of the last one is the reference.
    """
    answer = accepted_columns(rows)[-1]
    if answer == "text":
        raise ValueError("rows with only a column `text` have no answers to compare with: pass prompts and answers")
    prompts = to_prompts(rows, tokenizer, chat_template)
    references = [_texts(value, f"row {number}: {answer}") for number, value in enumerate(rows[answer])]
    return Dataset.from_dict({"prompt": prompts, "references": references})


def _texts(value: Any, where: str) -> list[str]:
    found = [value] if isinstance(value, str) else list(value or ())
    if found and isinstance(found[-1], dict):
        if found[-1]["role"] != "assistant":
            raise ValueError(
                f"{where} ends with a turn of {found[-1]['role']!r} instead of the assistant's, with which answers are "
                "compared: remove the row, or add an answer"
            )
        found = [found[-1]["content"]]
    if not found or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{where} is {value!r} instead of text; correct or remove the row")
    return found
