"""Checks whether training rows are the same each time they are read, as an exact resume requires."""

import logging
from typing import Any, cast

from datasets.fingerprint import Hasher
from transformers import TrainingArguments

from hfkd.data.first_rows import map_style
from hfkd.utils.random_state import kept_random_state

logger = logging.getLogger(__name__)

READ_TWICE = 4  # rows to read twice: two random crops of one row may be equal by chance


def warn_of_random_rows(dataset: Any) -> None:
    """Warn if rows differ when they are read again, as with a user's own random transform.

    hfkd's transforms seed their random numbers by seed, epoch and index. A transform that uses the process's generators
    continues, after a resume, from the state in the checkpoint, which is ahead of the step by the prefetched batches.
    """
    if not map_style(dataset):
        return
    rows, indexed = range(min(READ_TWICE, len(dataset))), cast(Any, dataset)
    with kept_random_state():
        once, again = ([Hasher.hash(indexed[i]) for i in rows] for _ in range(2))
    if once != again:
        logger.warning(
            "The training rows differ each time they are read: their transform draws random numbers that are not "
            "tied to the row. The resumed run continues with other random numbers than an uninterrupted run, and "
            "ends with different weights. hfkd's transforms (ImageTransform, ...), and transforms seeded by the "
            "row's index, are reproducible."
        )


def warn_of_rows_again(args: TrainingArguments) -> None:
    """Warn of the effect of `ignore_data_skip`, and of orders of rows that are not stored, on a resumed run."""
    if args.ignore_data_skip:
        logger.warning(
            "ignore_data_skip=True: the interrupted epoch starts again with its first rows, which are trained on "
            "twice, and the run ends with other weights than an uninterrupted one"
        )
    elif args.train_sampling_strategy == "random" and not cast(Any, args.accelerator_config).use_seedable_sampler:
        logger.warning(
            "use_seedable_sampler=False: checkpoints do not store the order of the rows, so that in the rest of the "
            "interrupted epoch some rows are trained on twice and others not at all, unless it is the first epoch"
        )
    if not args.dataloader_in_order and args.dataloader_num_workers > 1:
        logger.warning(
            "dataloader_in_order=False: the batches came in the order in which workers had them ready, which no "
            "checkpoint stores, so that in the rest of the interrupted epoch some rows may be trained on twice and "
            "others not at all"
        )
