"""How accelerate wraps the student for training on several ranks."""

import logging
from typing import Any

from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from hfkd.training.nonfinite import WHOLE
from hfkd.utils.prepared import is_autocast, unprepared

logger = logging.getLogger(__name__)


class OwnPreparation(TrainerCallback):
    """Has the student prepared by the accelerator of this trainer, whoever has prepared it since.

    accelerate leaves a network alone that bears the mark of having been prepared. After another trainer it would
    compute in the precision of that one; after an evaluation, which prepares it without DDP, each rank would train a
    student of its own on its share of the rows, and that of the first rank be saved.
    """

    def __init__(self, host: Any) -> None:
        self.host = host
        self._autocast: Any = object()  # not prepared here yet

    def for_training(self) -> None:
        """Called before Trainer wraps the student."""
        host = self.host
        wrapped = getattr(host.model_wrapped, "_orig_mod", host.model_wrapped)  # within torch.compile
        without_ddp = host.accelerator.num_processes > 1 and not isinstance(wrapped, DistributedDataParallel)
        if self._whole and (without_ddp or self._by_another):
            unprepared(host.model)
            host.model_wrapped = host.model

    def for_evaluation(self) -> None:
        """Called before an evaluation."""
        if self._whole and self._by_another:
            unprepared(self.host.model)
            self.host.accelerator._models.clear()  # Trainer prepares the student if there is none

    def done(self) -> None:
        """Called once the student is prepared."""
        self._autocast = self._around_student

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.done()

    @property
    def _whole(self) -> bool:
        return self.host.accelerator.distributed_type in WHOLE

    @property
    def _by_another(self) -> bool:
        return self._around_student is not self._autocast

    @property
    def _around_student(self) -> Any:
        """The autocast around the student's forward, if there is one."""
        forward = vars(self.host.model).get("forward")
        return forward if is_autocast(forward) else None


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
