"""Says what `auto_find_batch_size` leaves of an attempt with too large a batch."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils.memory import should_reduce_batch_size

from hfkd.training.host import Host

logger = logging.getLogger(__name__)


@contextmanager
def attempt(host: Host) -> Iterator[None]:
    """Context of one attempt, which warns if it runs out of memory after it has changed the student."""
    try:
        yield
    except Exception as error:
        step, begun = host.state.global_step, host.judged.watch.begun
        if host.args.auto_find_batch_size and should_reduce_batch_size(error) and step > begun:
            logger.warning(
                "auto_find_batch_size: there was no memory for step %d with batches of %d. Training starts again at "
                "step %d with smaller ones, but with the weights and the optimizer of step %d. Start the run anew with "
                "a smaller per_device_train_batch_size if it is to be as long as it says.",
                step + 1,
                host._train_batch_size,
                begun,
                step,
            )
        raise
