"""Warns of evaluation sets whose rows are random, as those of a split of the training set with its transform."""

import logging
from collections.abc import Mapping
from typing import Any

from hfkd.data.epochs import EpochTransform, datasets_in, epoch_transform
from hfkd.data.first_rows import sets_by_name

logger = logging.getLogger(__name__)


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


def _transforms(dataset: Any) -> list[EpochTransform]:
    return [transform for transform in map(epoch_transform, datasets_in(dataset)) if transform is not None]
