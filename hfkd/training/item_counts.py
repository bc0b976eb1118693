"""The number of items of an optimizer step over all ranks, by which its loss is divided."""

from typing import Any

import torch
from torch import Tensor

from hfkd.losses.counts import Counts
from hfkd.training.host import Host
from hfkd.training.validation.labels import refuse_unlabelled_batch


def step_counts(trainer: Host, batches: list[Any], device: torch.device) -> Any:
    """Images, not label elements; target tokens, not positions. None without batches.

    `Counts` of labels, items and samples if these may differ, else a number.
    """
    task, loss = trainer.task, trainer.distillation_loss
    if not batches:
        return None
    for batch in batches:
        refuse_unlabelled_batch(batch, loss, task)
    labels = items = _over_ranks(trainer, sum(map(task.count, batches)), device)
    if not task.complete:
        labels = _over_ranks(trainer, sum(map(task.count_labels, batches)), device)
    if loss.by_sample or task.by_share:
        return Counts(labels, items, _over_ranks(trainer, sum(map(task.count_samples, batches)), device))
    return items if task.complete else Counts(labels, items)


def _over_ranks(trainer: Host, count: Any, device: torch.device) -> Any:
    if trainer.args.average_tokens_across_devices and trainer.args.world_size > 1:
        here = count if isinstance(count, Tensor) else torch.full((), count, device=device)  # a copy would wait
        count = trainer.accelerator.reduce(here, reduction="sum")
    return count / trainer.get_tp_size()  # of processes with the same rows
