"""The flags that define a text dataset, and its training and evaluation split."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Value

from hfkd.data.text_files import read_splits
from hfkd.utils.flags import at_least_one, flag

logger = logging.getLogger(__name__)

EVAL_SPLITS = ("validation", "valid", "val", "dev", "test")


@dataclass
class TextSetArguments:
    """Training and evaluation texts."""

    dataset_name: str = flag(
        "stanfordnlp/sst2", "Hub id, local folder, or a file (JSON lines, .csv, .tsv, .parquet, .txt)."
    )
    dataset_config: str | None = flag(None, "Configuration of the dataset, if it has several.")
    train_split: str = flag("train", "Split to train on.")
    eval_split: str | None = flag(None, "Split to evaluate on; unset: validation, valid, val or dev, else test.")
    hold_out: int | None = flag(
        None,
        "Instead of eval_split: evaluate on this many rows of train_split, selected by split_seed and left "
        "out of training.",
    )
    split_seed: int = flag(0, "Random seed of hold_out, max_train_rows and max_eval_rows.")
    max_length: int = flag(128, "Maximum length of a row in tokens.")
    max_train_rows: int | None = flag(None, "Train on this many rows, selected by split_seed.")
    max_eval_rows: int | None = flag(None, "Evaluate on this many rows, selected by split_seed.")

    def __post_init__(self) -> None:
        at_least_one(self, "hold_out", "max_length", "max_train_rows", "max_eval_rows")
        if self.hold_out is not None and self.eval_split is not None:
            raise ValueError(f"hold_out={self.hold_out} and eval_split={self.eval_split!r} are both set: leave one out")

    def splits(self) -> tuple[Dataset, Dataset]:
        """The training and evaluation rows. Raises ValueError if a split is missing."""
        found = read_splits(self.dataset_name, self.dataset_config)
        if self.train_split not in found:
            raise ValueError(
                f"{self.dataset_name} has no split {self.train_split!r}: it has {list(found)}; pass --train_split"
            )
        train, scored = self._pair(found)
        return self._drawn(train, self.max_train_rows), self._drawn(scored, self.max_eval_rows)

    def _pair(self, found: dict[str, Dataset]) -> tuple[Dataset, Dataset]:
        train = found[self.train_split]
        if self.hold_out is not None:
            if self.hold_out >= len(train):
                raise ValueError(
                    f"hold_out={self.hold_out} leaves none of the {len(train)} rows of {self.train_split!r} for "
                    "training: hold out fewer"
                )
            parts = train.train_test_split(test_size=self.hold_out, seed=self.split_seed)
            logger.info("%d of %d rows of %r are held out for evaluation", self.hold_out, len(train), self.train_split)
            return parts["train"], parts["test"]
        usual = (name for name in EVAL_SPLITS if name in found and name != self.train_split)
        name = self.eval_split or next(usual, None)
        if name is None or name not in found:
            missing = "no split to evaluate on" if name is None else f"no split {name!r}"
            raise ValueError(
                f"{self.dataset_name} has {missing}: it has {list(found)}; pass --eval_split, or --hold_out ROWS to "
                f"hold out rows of {self.train_split!r}"
            )
        if name == self.train_split:
            raise ValueError(f"eval_split={name!r} is also the training split: pass another split, or --hold_out ROWS")
        logger.info("Training on the split %r, evaluation on %r", self.train_split, name)
        return train, found[name]

    def _drawn(self, rows: Dataset, count: int | None) -> Dataset:
        if count is None or count >= len(rows):
            return rows
        return rows.shuffle(seed=self.split_seed).select(range(count))  # many datasets are sorted by label


def text_columns_of(rows: Dataset) -> list[str]:
    return [name for name, feature in rows.features.items() if is_text(feature)]


def is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def check_texts(rows: Dataset, columns: list[str], split: str) -> None:
    """Raise ValueError unless these columns exist, and hold text in every row."""
    for column in columns:
        if column not in rows.column_names:
            raise ValueError(f"{split} has no column {column!r}: name one of {rows.column_names}")
        if not is_text(rows.features[column]):
            raise ValueError(
                f"column {column!r} of {split} holds {rows.features[column]} instead of text: name another column"
            )
        missing = first_missing(rows, column)
        if missing is not None:
            raise ValueError(f"row {missing} of {split} has no {column!r}: remove such rows")


def first_missing(rows: Dataset, column: str) -> int | None:
    """The first row without a value in the column; the values themselves, of which there may be many, are not read."""
    start = 0
    for table in rows.select_columns(column).with_format("arrow").iter(10_000):
        missing = np.flatnonzero(table[column].is_null().to_numpy())
        if len(missing):
            return start + int(missing[0])
        start += len(table)
    return None


def check_length(tokenizer: Any, max_length: int, special: int) -> None:
    """Raise ValueError for a `max_length` without room for text, or above the tokenizer's maximum length."""
    if max_length <= special:
        raise ValueError(
            f"max_length={max_length} leaves no room for text, because the tokenizer adds {special} special tokens: "
            "increase it"
        )
    if max_length > tokenizer.model_max_length:
        raise ValueError(
            f"max_length={max_length} is above the tokenizer's maximum length of {tokenizer.model_max_length} tokens: "
            "lower max_length"
        )
