"""Whether training rows are the same each time they are read: what a resumed run rests on."""

import logging
from typing import Any, cast

import torch
from datasets.fingerprint import Hasher
from transformers import TrainingArguments
from transformers.trainer_utils import has_length

from hfkd.utils.random_state import kept_random_state

logger = logging.getLogger(__name__)

READ_TWICE = 4  # rows: a random crop may come out the same once


def warn_of_random_rows(dataset: Any) -> None:
    """Say so where rows differ when they are read again, as those of a random transform of one's own do.

    hfkd's transforms draw from seed, epoch and index. A transform that draws from the generators of the process takes
    up, after a resume, where the checkpoint left them, and that is a batch or more ahead of the step: loaders prefetch.
    """
    if dataset is None or not has_length(dataset) or isinstance(dataset, torch.utils.data.IterableDataset):
        return
    rows, indexed = range(min(READ_TWICE, len(dataset))), cast(Any, dataset)
    with kept_random_state():
        once, again = ([Hasher.hash(indexed[i]) for i in rows] for _ in range(2))
    if once != again:
        logger.warning(
            "The training rows are others each time they are read: their transform draws random numbers of its own. "
            "The resumed run goes on with other draws than a run that was never stopped, and so ends in other weights. "
            "hfkd's transforms (ImageTransform, ...) and what draws from the row's index alone are the same again."
        )


def warn_of_rows_again(args: TrainingArguments) -> None:
    """Say what `ignore_data_skip`, and an order of rows that is drawn anew, do to a run that is resumed."""
    if args.ignore_data_skip:
        logger.warning(
            "ignore_data_skip=True: the epoch that the run stopped in begins again with its first rows, which come "
            "twice, and the run ends in other weights than one that was never stopped"
        )
    elif args.train_sampling_strategy == "random" and not cast(Any, args.accelerator_config).use_seedable_sampler:
        logger.warning(
            "use_seedable_sampler=False: no checkpoint knows in which order the rows of the epoch came that the run "
            "stopped in, so that in the rest of it some come twice and others not at all, unless it is the first"
        )
