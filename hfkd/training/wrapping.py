"""How accelerate wraps the student for training on several ranks."""

import logging
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from hfkd.training.nonfinite import WHOLE
from hfkd.utils.prepared import unprepared

logger = logging.getLogger(__name__)


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


def say_unsaved(trainer: Any) -> None:
    """Warn if `save_model` writes nothing of the student, as Trainer does of one that FSDP saves in shards."""
    if not trainer.is_fsdp_enabled:
        return
    kind = getattr(trainer.accelerator.state.fsdp_plugin.state_dict_type, "name", None)
    if kind not in (None, "FULL_STATE_DICT"):
        logger.warning(
            "save_model writes no files of the student with FSDP's state_dict_type %s, and checkpoints its shards "
            "alone: set fsdp_state_dict_type: FULL_STATE_DICT, as in accelerate_configs/fsdp.yaml, or join those of a "
            "checkpoint by `accelerate merge-weights`.",
            kind,
        )
