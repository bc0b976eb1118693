"""How accelerate wraps the student for training on several ranks."""

from typing import Any

from torch.nn.parallel import DistributedDataParallel

from hfkd.training.nonfinite import WHOLE
from hfkd.utils.prepared import unprepared


def wrapped_anew(trainer: Any) -> None:
    """Let accelerate wrap the student for training on several ranks, also if it has been evaluated before.

    An evaluation marks it as prepared, without DDP: each rank would train a student of its own on its share of the
    rows, and that of the first rank be saved.
    """
    wrapped = getattr(trainer.model_wrapped, "_orig_mod", trainer.model_wrapped)  # within torch.compile
    whole = trainer.accelerator.distributed_type in WHOLE
    if trainer.accelerator.num_processes > 1 and whole and not isinstance(wrapped, DistributedDataParallel):
        unprepared(wrapped)
        trainer.model_wrapped = trainer.model
