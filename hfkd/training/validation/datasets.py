"""Checks of the datasets' first rows that need no network."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hfkd.data.collate import ImageCollator
from hfkd.data.first_rows import first_rows, map_style, sets_by_name
from hfkd.data.instructions import ACCEPTED
from hfkd.data.text_collate import TokenCollator
from hfkd.data.token_rows import OWN_COLUMNS
from hfkd.data.used_columns import label_column
from hfkd.models.calling import OWN_KEYS, Call
from hfkd.tasks.base import Task
from hfkd.tasks.media import PICTURES

logger = logging.getLogger(__name__)
Collate = Callable[[list[Any]], dict[str, Tensor]]


def check_datasets(datasets: Mapping[str, Any], collate: Collate, task: Task) -> None:
    """Raise ValueError for a dataset that is empty, or whose first rows cannot be collated.

    Also for an evaluation set with several views of each image, or without labels.
    """
    for name, dataset in datasets.items():
        for part, rows in sets_by_name(dataset, name).items():
            if not map_style(rows):
                continue
            if len(rows) == 0:
                raise ValueError(
                    f"{part} is empty: there is nothing to {'train on' if 'train' in name else 'evaluate'}"
                )
            batch = _first_batch(part, rows, collate)
            images = batch.get("pixel_values") if task.views else None
            if name != "train_dataset" and not isinstance(batch.get("labels"), Tensor):
                raise ValueError(
                    f"the rows of {part} have no labels, but eval_loss is the cross-entropy on labels: "
                    f"{task.without_labels}"
                )
            if name != "train_dataset":
                _warn_of_mixing(part, rows[0], batch.get("labels"))
            if name != "train_dataset" and images is not None and images.ndim == 5:
                raise ValueError(
                    f"{part} yields {images.shape[1]} views of each image, but evaluation needs one: use the "
                    "transform's clean() for it"
                )


def _warn_of_mixing(name: str, row: Any, labels: Any) -> None:
    """Warn of MixUp or CutMix in the data_collator, which would apply in evaluation too."""
    column = label_column(row) if isinstance(row, Mapping) else None
    its = None if column is None else row[column]
    mixed = isinstance(labels, Tensor) and labels.is_floating_point() and labels.ndim == 2
    if mixed and its is not None and np.ndim(its) == 0:
        logger.warning(
            "The data_collator mixes the labels of %s, so that eval_loss and the metrics are computed on mixed "
            "images: let it mix in training only, or mix in the transform of the training set.",
            name,
        )


def _first_batch(name: str, dataset: Any, collate: Collate) -> dict[str, Tensor]:
    """A batch of two rows, since timm's Mixup needs an even number."""
    rows = first_rows(dataset)
    try:
        return collate(rows)
    except ValueError:  # from hfkd's and transformers' collators, with their own explanation
        raise
    except Exception as error:
        columns = f"columns {sorted(rows[0])}" if isinstance(rows[0], Mapping) else f"type {type(rows[0]).__name__}"
        raise ValueError(
            f"the data_collator cannot collate the first rows of {name}, with {columns} ({type(error).__name__}: "
            f"{error}): correct the collator or the rows; remove_unused_columns=True drops the columns that no "
            "network takes"
        ) from error


def probed_dataset(datasets: Mapping[str, Any]) -> Any:
    """The dataset to check before training: the training set, or else the evaluation set."""
    for rows in (datasets["train_dataset"], datasets["eval_dataset"]):
        if rows is not None:
            return next(iter(rows.values())) if isinstance(rows, dict) else rows
    return None


def texts_alone(dataset: Any) -> bool:
    """Whether the rows have tokens, or texts to tokenise, and no images."""
    row = next(iter(first_rows(dataset)), None)
    if not isinstance(row, Mapping) or not row.keys().isdisjoint(PICTURES):
        return False
    return any(set(names) <= row.keys() for names in (("input_ids",), *ACCEPTED))


def refuse_columns(refused: Mapping[str, str], rows: Any) -> None:
    """Raise ValueError for a dataset that is to be tokenised and has one of the `refused` columns."""
    for name in getattr(rows, "column_names", None) or ():
        if name in refused:
            raise ValueError(refused[name])


def say_left_out(dataset: Any, collate: Collate, call: Call, labels: Sequence[str]) -> None:
    """Log once which columns of the training rows do not reach the student.

    A warning for those that a user's collator keeps, and for those that hfkd's collator drops though the student takes
    them; other columns are not expected to be inputs, and are logged at level info.
    """
    if not map_style(dataset) or not isinstance(dataset[0], Mapping):
        return
    row = dataset[0]
    batch = collate(first_rows(dataset))
    if kept := call.left_out(batch, labels):
        logger.warning(
            "The columns %s of the batch are not passed to the student, as its forward does not accept them.", kept
        )
    if isinstance(collate, (ImageCollator, TokenCollator)):
        dropped = [name for name in row if name not in batch and name not in (*labels, *OWN_KEYS, *OWN_COLUMNS)]
        if wanted := sorted(name for name in dropped if call.takes(name)):
            logger.warning(
                "The columns %s are dropped from the batch, although the student accepts them: pass a "
                "data_collator that keeps them.",
                wanted,
            )
        elif dropped:
            logger.info(
                "The columns %s are dropped from the batch: the student's forward does not accept them.", dropped
            )
