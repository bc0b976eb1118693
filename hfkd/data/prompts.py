"""The prompts of an instruction dataset, as text and as tokens, for generation."""

import logging
from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hfkd.data.instructions import ACCEPTED, to_prompts
from hfkd.data.teacher_columns import TEACHER_PROMPT
from hfkd.data.text import encode_texts

logger = logging.getLogger(__name__)

QUESTIONS = ("prompt", "instruction")


@dataclass(frozen=True)
class Prompts:
    """`ids[i]` are the tokens of `texts[i]`, the prompt of row `rows[i]`. dropped: the number of long prompts."""

    texts: list[str]
    ids: list[list[int]]
    rows: list[int]
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.rows)


def read_prompts(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int = 256,
    chat_template: bool = False,
    templated: bool = False,
) -> Prompts:
    """The prompts as in `tokenize_dataset`: the same texts and tokens, with long prompts dropped.

    templated: the rows' prompts are in a chat template already, which has its own special tokens. Rows need no
    responses: a column `prompt` or `instruction` is enough, or turns that end with the question. Raises ValueError for
    other columns, for a `teacher_prompt`, for a prompt without tokens, and if all prompts are too long.
    """
    if TEACHER_PROMPT in dataset.column_names:
        raise ValueError(
            f"the rows have a {TEACHER_PROMPT} beside the prompt, and responses are generated to one of them: rename "
            "it to prompt, or remove it"
        )
    texts = to_prompts(_with_responses(dataset), tokenizer, chat_template)
    ids = encode_texts(texts, tokenizer, add_special_tokens=not (chat_template or templated))
    empty = next((row for row, tokens in enumerate(ids) if not tokens), None)
    if empty is not None:
        raise ValueError(
            f"row {empty} has an empty prompt ({texts[empty]!r}), after which no response can be generated: pass rows "
            f"with a column {' or '.join(QUESTIONS)}, or remove this row"
        )
    kept = [row for row, tokens in enumerate(ids) if len(tokens) <= max_prompt_length]
    if not kept:
        raise ValueError(
            f"all {len(ids)} prompts have more than max_prompt_length={max_prompt_length} tokens (the shortest has "
            f"{min(map(len, ids), default=0)}): increase max_prompt_length"
        )
    dropped = len(ids) - len(kept)
    if dropped:
        logger.info("%d of %d prompts have more than %d tokens and are dropped.", dropped, len(ids), max_prompt_length)
    return Prompts([texts[row] for row in kept], [ids[row] for row in kept], kept, dropped)


def _with_responses(dataset: Dataset) -> Dataset:
    """Add empty responses to rows without any, so that they are read like all others."""
    accepted = any(set(names) <= set(dataset.column_names) for names in ACCEPTED)
    if accepted or not set(QUESTIONS) & set(dataset.column_names):
        return dataset
    return dataset.add_column("response", [""] * len(dataset))
