"""Slots that compare what is in a batch need enough in it."""

import logging

from hfkd.arguments import DistillationArguments
from hfkd.items import IMAGES, ItemRule
from hfkd.loss import DistillationLoss

logger = logging.getLogger(__name__)


def refuse_small_batches(loss: DistillationLoss, args: DistillationArguments, rule: ItemRule) -> None:
    """Raise ValueError where a batch of one process is too small for what a slot compares in it.

    For tokens a warning, since a row may hold several documents. The last batch of an epoch may be smaller than was
    asked for: a slot then leaves out what it cannot compare.
    """
    rows = args.train_batch_size // (args.world_size if args.accelerator_config.split_batches else 1)
    for slot in (loss.objective, loss.weighting) if loss.kd_weight else ():
        # A row of tokens is one sample and many items, an image is both.
        needed = max(getattr(slot, "least_items", 1) if rule is IMAGES else 1, getattr(slot, "least_samples", 1))
        if rows >= needed:
            continue
        found = (
            f"{slot!r} compares the rows of a batch with each other, for which it needs {needed} or more, and "
            f"per_device_train_batch_size gives it {rows}: raise that (accumulated batches are not compared), or "
            "choose another"
        )
        if rule is IMAGES:
            raise ValueError(found)
        logger.warning("%s. It is of use only where a row holds several documents.", found)
