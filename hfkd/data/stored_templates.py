"""What the responses.json of a dataset of `hfkd generate` says: whether it is complete, and its prompts' template."""

import json
import logging
from pathlib import Path

from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

RESPONSES = "responses.json"  # written by `hfkd generate` beside its rows


def prompts_with_template(dataset_name: str) -> bool:
    """Whether `hfkd generate --chat_template` wrote this folder, or the folder of this file."""
    path = Path(dataset_name).expanduser()
    if not path.exists():
        return False
    try:
        found = json.loads(((path if path.is_dir() else path.parent) / RESPONSES).read_text(encoding="utf-8"))
        return bool(found["settings"]["chat_template"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or someone else's file
        return False


def refuse_unfinished(folder: Path) -> None:
    """Raise ValueError for a folder of `hfkd generate` without its counts, which are written last.

    If only the copy of another split is there, because the disk was full, it would be read as the training rows.
    """
    try:
        found = json.loads((folder / RESPONSES).read_text(encoding="utf-8"))
        unfinished = {"settings", "filters"} <= found.keys() and "counts" not in found
    except (OSError, ValueError, AttributeError):  # none, or someone else's file
        return
    if unfinished:
        raise ValueError(
            f"{folder} has responses of a teacher that `hfkd generate` has not finished: run the same command again, "
            "which keeps those that are there"
        )


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
