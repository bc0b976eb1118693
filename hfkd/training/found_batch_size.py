"""`auto_find_batch_size`: what an attempt with too large a batch leaves, and whether all processes make another one."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from accelerate.utils.memory import should_reduce_batch_size

from hfkd.training.host import Host

PATIENCE = timedelta(seconds=60)  # between processes that run out of memory in the same step
logger = logging.getLogger(__name__)


@contextmanager
def attempt(host: Host) -> Iterator[None]:
    """Context of one attempt, which warns if it runs out of memory after it has changed the student.

    Raises MemoryError in a process that runs out of memory while another does not, as the lengths of their rows differ:
    it would start again, and the other wait for it in a step of the larger batches.
    """
    finds = host.args.auto_find_batch_size
    several = finds and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    group = dist.new_group(backend="gloo", timeout=PATIENCE) if several else None
    try:
        yield
    except Exception as error:
        if not (finds and should_reduce_batch_size(error)):
            raise
        step, begun, size = host.state.global_step, host.judged.watch.begun, host._train_batch_size
        if group is not None and not _in_all(group):
            raise MemoryError(
                f"auto_find_batch_size: rank {dist.get_rank()} has no memory for step {step + 1} with batches of "
                f"{size}, and not all others ran out of it too, so that they cannot start again together: set "
                f"per_device_train_batch_size below {size}"
            ) from error
        if step > begun:
            logger.warning(
                "auto_find_batch_size: there was no memory for step %d with batches of %d. Training starts again at "
                "step %d with smaller ones, but with the weights and the optimizer of step %d. Start the run anew with "
                "a smaller per_device_train_batch_size if it is to be as long as it says.",
                step + 1,
                size,
                begun,
                step,
            )
        raise


def _in_all(group: Any) -> bool:
    """Whether all processes come here; others may be in a step, so that this needs a group of its own."""
    try:
        dist.barrier(group)
    except RuntimeError:
        return False
    return True
