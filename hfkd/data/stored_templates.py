"""What the responses.json of a dataset of `hfkd generate` says: whether it is complete, and its prompts' template."""

import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfkd.utils import formats
from hfkd.utils.json_file import json_if_any

logger = logging.getLogger(__name__)

RESPONSES = "responses.json"  # written by `hfkd generate` beside its rows
OTHER_VERSION = "read the folder with the version that generated it, or generate the responses again in another folder"


def prompts_with_template(dataset_name: str) -> bool:
    """Whether `hfkd generate --chat_template` wrote this folder, or the folder of this file."""
    path = Path(dataset_name).expanduser()
    if not path.exists():
        return False
    found = _responses_of(path if path.is_dir() else path.parent)
    return bool(found and found["settings"].get("chat_template"))


def refuse_unfinished(folder: Path) -> None:
    """Raise ValueError for a folder of `hfkd generate` without its counts, which are written last.

    If only the copy of another split is there, because the disk was full, it would be read as the training rows.
    """
    found = _responses_of(folder)
    if found is not None and "filters" in found and "counts" not in found:
        raise ValueError(
            f"{folder} has responses of a teacher that `hfkd generate` has not finished: run the same command again, "
            "which keeps those that are there"
        )


def _responses_of(folder: Path) -> dict[str, Any] | None:
    """The responses.json in `folder`; None without one of `hfkd generate`. ValueError for one of another version."""
    found = json_if_any(folder / RESPONSES)
    if found is None or not isinstance(found.get("settings"), dict):  # someone else's file
        return None
    formats.refuse_other_version(folder / RESPONSES, found, formats.RESPONSES, OTHER_VERSION)
    return found


def warn_of_other_template(dataset_name: str, prompt: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn if a prompt that includes a chat template has neither special tokens of the tokenizer nor its template."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not (tokenizer.added_tokens_decoder.keys() - {tokenizer.unk_token_id}).isdisjoint(ids):
        return
    if tokenizer.chat_template:
        question = [{"role": "user", "content": "question"}]
        written = str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True))
        if prompt.endswith(written.rpartition("question")[2]):
            return
    logger.warning(
        "The prompts of %s include a chat template, but %s has none of its special tokens, and would read them as "
        "ordinary text, without its own beginning of a sequence: the template is probably that of another tokenizer. "
        "Generate responses to prompts without --chat_template for this student.",
        dataset_name,
        tokenizer.name_or_path or type(tokenizer).__name__,
    )
