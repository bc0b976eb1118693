"""The prompts of an instruction data set, for a network that answers them: as text and as tokens."""

import logging
from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hfkd.data.instructions import ACCEPTED, to_prompt_response
from hfkd.data.text import encode_texts

logger = logging.getLogger(__name__)

QUESTIONS = ("prompt", "instruction")


@dataclass(frozen=True)
class Prompts:
    """`ids[i]` are the tokens of `texts[i]`, the prompt of row `rows[i]` of the data set. dropped: those too long."""

    texts: list[str]
    ids: list[list[int]]
    rows: list[int]
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.rows)


def read_prompts(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int = 256, chat_template: bool = False
) -> Prompts:
    """The prompts that `tokenize_dataset` would train on: the same texts, the same tokens, long ones dropped.

    Rows need no responses: a column `prompt` or `instruction` is enough. Raises ValueError for other columns, for a
    prompt without a token, and where every prompt is too long.
    """
    texts = to_prompt_response(_with_responses(dataset), tokenizer, chat_template)["prompt"][:]
    ids = encode_texts(texts, tokenizer, add_special_tokens=not chat_template)
    empty = next((row for row, tokens in enumerate(ids) if not tokens), None)
    if empty is not None:
        raise ValueError(
            f"row {empty} has no prompt that a response could be written after ({texts[empty]!r}): give rows with a "
            f"column of {' or '.join(QUESTIONS)}, or leave that row out"
        )
    kept = [row for row, tokens in enumerate(ids) if len(tokens) <= max_prompt_length]
    if not kept:
        raise ValueError(
            f"each of the {len(ids)} prompts has more than max_prompt_length={max_prompt_length} tokens (the shortest "
            f"{min(map(len, ids), default=0)}): raise max_prompt_length"
        )
    dropped = len(ids) - len(kept)
    if dropped:
        logger.info("%d of %d prompts have more than %d tokens and are dropped.", dropped, len(ids), max_prompt_length)
    return Prompts([texts[row] for row in kept], [ids[row] for row in kept], kept, dropped)


def _with_responses(dataset: Dataset) -> Dataset:
    """Rows of questions alone get empty answers, so that they are read as all others are."""
    accepted = any(set(names) <= set(dataset.column_names) for names in ACCEPTED)
    if accepted or not set(QUESTIONS) & set(dataset.column_names):
        return dataset
    return dataset.add_column("response", [""] * len(dataset))
