"""Warns of evaluation sets whose rows are random, as those of a split of the training set with its transform."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hfkd.data.epochs import EpochTransform, datasets_in, epoch_transform
from hfkd.data.first_rows import first_rows, map_style, sets_by_name
from hfkd.utils.random_state import kept_random_state

logger = logging.getLogger(__name__)
READINGS = 5  # of two images: if each is flipped or not, all are the same by chance once in 256 times


def warn_of_random_evaluation(datasets: Mapping[str, Any]) -> None:
    """Warn of an evaluation set that is augmented, or whose rows change with the training set's epoch."""
    set_in_training = {id(transform.epoch) for transform in _transforms(datasets["train_dataset"])}
    for name, part in sets_by_name(datasets["eval_dataset"]).items():
        for transform in _transforms(part):
            augmented = getattr(getattr(transform, "plain", transform), "augment", None)
            if augmented:
                logger.warning(
                    "The images of %s are cropped or flipped at random, as augment=True says, so that the scores are "
                    "not those of the images themselves: pass eval_dataset.with_transform(transform.clean()).",
                    name,
                )
            elif augmented is None and id(transform.epoch) in set_in_training:
                logger.warning(
                    "%s has the transform of train_dataset (%s), whose rows change with the epoch, so that scores "
                    "of two epochs are of different rows: pass eval_dataset.with_transform(transform.at_epoch(0)).",
                    name,
                    type(transform).__name__,
                )


def warn_of_random_images(scored: Any, collate: Callable[[list[Any]], Any]) -> None:
    """Warn of evaluation sets whose images differ when they are read again, by any transform or collator."""
    for name, part in sets_by_name(scored).items():
        if not map_style(part):
            continue
        with kept_random_state():
            read = [collate(first_rows(part)).get("pixel_values") for _ in range(READINGS)]
        first = read[0]
        if isinstance(first, Tensor) and any(_differ(first, again) for again in read[1:]):
            logger.warning(
                "The images of %s differ each time they are read, as augmentation in a transform or a data_collator "
                "makes them (random_split keeps the transform of the training set), so that the scores are not those "
                "of the images themselves: give it a transform without random parts.",
                name,
            )


def _differ(one: Tensor, other: Tensor) -> bool:
    return one.shape != other.shape or not torch.equal(one.nan_to_num(), other.nan_to_num())


def _transforms(dataset: Any) -> list[EpochTransform]:
    return [transform for transform in map(epoch_transform, datasets_in(dataset)) if transform is not None]
