"""Plain texts -> rows of token ids for masked language modelling.

L tokens of a row.
"""

import logging
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hfkd.data.masking import TokenMasking
from hfkd.data.text_sets import TextSetArguments, check_length, check_texts, text_columns_of
from hfkd.utils import formats
from hfkd.utils.flags import flag

logger = logging.getLogger(__name__)


class PlainTexts(NamedTuple):
    """Two splits with the column `text`."""

    train: Dataset
    scored: Dataset


@dataclass
class PlainTextArguments(TextSetArguments):
    """The columns of the text, and how it is split into rows (`masked_lm.py`)."""

    text_columns: list[str] | None = flag(
        None, "Columns of the text, joined by line breaks; unset: text, or the only one that holds text."
    )
    line_by_line: bool = flag(
        False, "Make one row of each text, truncated at max_length, instead of concatenating all texts."
    )
    mask_probability: float = flag(0.15, "Share of the tokens that are selected for prediction.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_probability <= 1:
            raise ValueError(f"mask_probability={self.mask_probability} must be above 0 and at most 1")

    def read(self) -> PlainTexts:
        """Both splits. Raises ValueError for missing columns, and for rows without text."""
        train, scored = self.splits()
        columns = self.text_columns or self._text_columns(train)
        logger.info("Texts: %s", ", ".join(map(repr, columns)))
        for name, rows in (("the training split", train), ("the evaluation split", scored)):
            check_texts(rows, columns, name)
        train, scored = (_joined(rows, columns) for rows in (train, scored))
        return PlainTexts(train, scored)

    def tokens(self, texts: PlainTexts, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Both splits as rows of tokens, masked at random in each epoch by `seed`; fixed masks for evaluation."""
        masking = TokenMasking(tokenizer, self.mask_probability, seed)  # first, as it raises if there is no mask token
        train, scored = (tokenize_plain(rows, tokenizer, self.max_length, self.line_by_line) for rows in texts)
        return train.with_transform(masking), scored.with_transform(masking.at_epoch(0))

    @staticmethod
    def _text_columns(rows: Dataset) -> list[str]:
        texts = text_columns_of(rows)
        if "text" not in texts and len(texts) != 1:
            raise ValueError(
                f"the columns of the text are ambiguous: {texts} hold text, but none is named text; pass --text_columns"
            )
        return ["text"] if "text" in texts else texts


def _joined(rows: Dataset, columns: list[str]) -> Dataset:
    def join(batch: dict[str, list[str]]) -> dict[str, list[str]]:
        rows = zip(*(batch[name] for name in columns), strict=True)
        return {"text": ["\n".join(part for part in row if part) for row in rows]}

    return rows.map(join, batched=True, remove_columns=rows.column_names, desc="Reading the texts")


def tokenize_plain(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, line_by_line: bool = False
) -> Dataset:
    """`text` -> `input_ids` and `special_tokens_mask` (both [L]), `length` and `index`.

    The texts are concatenated, each with the tokenizer's special tokens, and split into rows of `max_length`; the rest
    of each thousand texts is dropped. `line_by_line` makes one row of each text that is not empty.
    """
    check_length(tokenizer, max_length, tokenizer.num_special_tokens_to_add())
    tokens = rows.map(
        _lines if line_by_line else _blocks,
        batched=True,
        remove_columns=rows.column_names,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length, "revision": formats.PLAIN_TEXTS},
        desc="Tokenising",
    )
    if len(tokens) == 0:
        raise ValueError(
            f"the {len(rows)} texts are too short for a row of max_length={max_length} tokens: lower it, or pass "
            "--line_by_line"
        )
    logger.info("%d texts were tokenised to %d rows of up to %d tokens", len(rows), len(tokens), max_length)
    return tokens.add_column("index", np.arange(len(tokens)))


def _lines(
    batch: dict[str, list[str]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    revision: int,  # only used in the cache's hash
) -> dict[str, list[list[int]] | list[int]]:
    texts = [text for text in batch["text"] if text.strip()]
    if not texts:
        return {"input_ids": [], "special_tokens_mask": [], "length": []}
    encoded = tokenizer(texts, truncation=True, max_length=max_length, return_special_tokens_mask=True)
    return _columns(encoded["input_ids"], encoded["special_tokens_mask"])


def _blocks(
    batch: dict[str, list[str]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    revision: int,  # only used in the cache's hash
) -> dict[str, list[list[int]] | list[int]]:
    texts = [text for text in batch["text"] if text.strip()]
    encoded: Any = tokenizer(texts, return_special_tokens_mask=True, verbose=False) if texts else {}
    ids, special = (list(chain(*encoded.get(name, ()))) for name in ("input_ids", "special_tokens_mask"))
    starts = range(0, len(ids) - max_length + 1, max_length)
    return _columns(*([part[i : i + max_length] for i in starts] for part in (ids, special)))


def _columns(ids: list[list[int]], special: list[list[int]]) -> dict[str, list[list[int]] | list[int]]:
    return {"input_ids": ids, "special_tokens_mask": special, "length": [len(row) for row in ids]}
