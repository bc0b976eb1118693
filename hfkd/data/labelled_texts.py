"""Texts, or pairs of texts, with one label each -> token ids and class ids.

L tokens of a row, C classes.
"""

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset, Value
from transformers import PreTrainedTokenizerBase

from hfkd.data.columns import LABEL_COLUMNS, find_column, label_names, num_labels
from hfkd.data.text_sets import TextSetArguments, check_length, check_texts, first_missing, text_columns_of
from hfkd.utils import formats
from hfkd.utils.flags import flag

logger = logging.getLogger(__name__)

TEXT_COLUMNS = ("text", "sentence", "content", "review")


class LabelledTexts(NamedTuple):
    """Two splits with the same columns: `text`, optionally `pair`, and `labels`, which are class ids."""

    train: Dataset
    scored: Dataset

    @property
    def num_labels(self) -> int:
        return num_labels(self.train)

    @property
    def label_names(self) -> list[str] | None:
        return label_names(self.train)

    @property
    def training_texts(self) -> list[str]:
        """All texts of the training split, also the second ones of pairs."""
        return [text for name in ("text", "pair") if name in self.train.column_names for text in self.train[name][:]]


@dataclass
class LabelledTextArguments(TextSetArguments):
    """The columns of texts and labels (`text_classification.py`)."""

    text_column: str | None = flag(None, "Column of the texts; unset: found by its name.")
    text_pair_column: str | None = flag(None, "Column of a second text, for the classification of pairs.")
    label_column: str | None = flag(None, "Column of the labels; unset: found by its name.")

    def read(self) -> LabelledTexts:
        """Both splits. Raises ValueError for missing columns, and for labels that are not one class per row."""
        train, scored = self.splits()
        label = find_column(train, self.label_column, LABEL_COLUMNS, "label_column")
        text = self.text_column or self._text_column(train, label)
        columns = {text: "text"} | ({self.text_pair_column: "pair"} if self.text_pair_column else {})
        logger.info("Texts: %s; labels: %s", " and ".join(map(repr, columns)), repr(label))
        for name, rows in (("the training split", train), ("the evaluation split", scored)):
            check_texts(rows, list(columns), name)
            find_column(rows, label, (), "label_column")
        train, scored = with_class_ids(train, scored, label)
        columns |= {label: "labels"}
        train, scored = (rows.select_columns(list(columns)).rename_columns(columns) for rows in (train, scored))
        return LabelledTexts(train, scored)

    def tokens(self, texts: LabelledTexts, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Dataset]:
        """Both splits, tokenised by `tokenize_labelled`."""
        train, scored = (tokenize_labelled(rows, tokenizer, self.max_length) for rows in texts)
        return train, scored

    @staticmethod
    def _text_column(rows: Dataset, label: str) -> str:
        texts = [name for name in text_columns_of(rows) if name != label]
        found = next((name for name in TEXT_COLUMNS if name in texts), texts[0] if len(texts) == 1 else None)
        if found is None:
            raise ValueError(
                f"the column of the texts is ambiguous: {texts} hold text, but none is named "
                f"{' or '.join(TEXT_COLUMNS)}; pass --text_column (and --text_pair_column for pairs of texts)"
            )
        return found


def with_class_ids(train: Dataset, scored: Dataset, column: str) -> tuple[Dataset, Dataset]:
    """Both splits with class ids in `column`; text labels become ids in alphabetical order.

    Raises ValueError for labels of another type, rows without a label, and classes that the training split does not
    have.
    """
    feature = train.features[column]
    named = isinstance(feature, Value) and feature.dtype in ("string", "large_string", "bool")
    if named:
        _refuse_missing(train, column, "the training split")
        train = train.class_encode_column(column)
        scored = _by_names(scored, column, train.features[column])
    elif not isinstance(feature, ClassLabel) and not (isinstance(feature, Value) and "int" in feature.dtype):
        raise ValueError(
            f"column {column!r} holds {feature} instead of one class per row: pass another --label_column (this "
            "recipe supports neither several labels per row nor regression)"
        )
    elif type(feature) is not type(scored.features[column]):
        raise ValueError(
            f"column {column!r} holds {feature} for training and {scored.features[column]} for evaluation: convert "
            "both to the same type"
        )
    classes = len(feature.names) if isinstance(feature, ClassLabel) and feature.names else None
    for name, rows in (("the training split", train), ("the evaluation split", scored)):
        classes = _check_ids(rows, column, name, classes)
    return train, scored


def _by_names(rows: Dataset, column: str, classes: ClassLabel) -> Dataset:
    """Text labels as the class ids of the training split."""
    _refuse_missing(rows, column, "the evaluation split")
    unknown = sorted({str(label) for label in rows.unique(column)} - set(classes.names))
    if unknown:
        raise ValueError(
            f"the evaluation split has the label {unknown[0]!r}, but the training split only {classes.names[:8]}: "
            "hold out rows of train_split (--hold_out), or remove rows with other labels"
        )
    features = rows.features.copy()
    features[column] = classes

    def ids(batch: dict[str, list[Any]]) -> dict[str, list[int]]:
        return {column: [classes.str2int(str(label)) for label in batch[column]]}

    return rows.map(ids, batched=True, features=features, desc="Numbering the labels")


def _refuse_missing(rows: Dataset, column: str, split: str) -> None:
    missing = first_missing(rows, column)
    if missing is not None:
        raise ValueError(f"row {missing} of {split} has no label: remove rows without labels")


def _check_ids(rows: Dataset, column: str, split: str, classes: int | None) -> int:
    """The number of classes; if not known, the largest label plus 1."""
    _refuse_missing(rows, column, split)
    labels = np.asarray(rows.with_format("numpy")[column][:])
    if len(labels) == 0:
        raise ValueError(f"{split} has no rows: pass another split")
    known = int(labels.max()) + 1 if classes is None else classes
    wrong = np.flatnonzero((labels < 0) | (labels >= known))
    if len(wrong):
        raise ValueError(
            f"row {wrong[0]} of {split} has the label {labels[wrong[0]]}, but there are {known} classes, numbered "
            "from 0 (-1 is a hidden label): choose a split with labels (--eval_split), or remove such rows"
        )
    absent = sorted(set(range(known)) - set(labels.tolist()))
    if absent:
        logger.warning("%s has no rows of the classes %s", split, absent[:8])
    return known


def tokenize_labelled(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """`text`, optionally `pair`, and `labels` -> the tokenizer's columns (each [L]), `labels`, `length` and `index`.

    Longer rows are truncated at the end, pairs at the end of the longer text; their number is logged. Raises
    ValueError for a row without any token, as an empty text is without special tokens.
    """
    pair = "pair" in rows.column_names
    check_length(tokenizer, max_length, tokenizer.num_special_tokens_to_add(pair))
    tokens = rows.map(
        _tokenize_batch,
        batched=True,
        remove_columns=[name for name in rows.column_names if name != "labels"],
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length, "revision": formats.LABELLED_TEXTS},
        desc="Tokenising",
    )
    empty = next((i for i, length in enumerate(tokens["length"][:]) if length == 0), None)
    if empty is not None:
        raise ValueError(
            f"row {empty} has no tokens, because its text is empty and the tokenizer adds no special tokens: a network "
            "would classify padding; remove such rows"
        )
    cut = int(sum(tokens["cut"][:]))
    logger.info("%d rows tokenised, of which %d are truncated at max_length=%d", len(tokens), cut, max_length)
    return tokens.remove_columns("cut").add_column("index", np.arange(len(tokens)))


def _tokenize_batch(
    batch: dict[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    revision: int,  # only used in the cache's hash
) -> dict[str, list[Any]]:
    texts = (batch["text"], batch["pair"]) if "pair" in batch else (batch["text"],)
    whole = [len(ids) for ids in tokenizer(*texts, verbose=False)["input_ids"]]
    columns = dict(tokenizer(*texts, truncation=True, max_length=max_length))
    lengths = [len(ids) for ids in columns["input_ids"]]
    return columns | {"length": lengths, "cut": [n > max_length for n in whole]}
