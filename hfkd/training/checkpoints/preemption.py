"""Checkpoints that the system asks for before it ends the process (`enable_jit_checkpoint`)."""

import logging
import signal
from typing import Any, NoReturn

from transformers import TrainerState
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

logger = logging.getLogger(__name__)

STATUS = 128 + signal.SIGTERM  # of a process that has ended by this signal


class Preemption(JITCheckpointCallback):
    """Writes a checkpoint after the step in which the signal comes, and ends the process.

    Trainer's writes it in the middle of a step, with the batch norms and the random state of the one after it, and then
    ends the training, which looks finished: the student of a few steps would be evaluated, saved and uploaded as if it
    were the result. If an evaluation or a log is due at this step, the checkpoint is written again when that is done.
    """

    def __init__(self, trainers: Any) -> None:
        """trainers: the callback in whose place this is."""
        super().__init__()
        self.trainer, self.jit_manager = trainers.trainer, trainers.jit_manager
        self._leaves = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Nothing: the step is taken first."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Nothing: the next step has begun to read its batches."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Nothing: the last step was asked, and the next is."""

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        manager: Any = self.jit_manager
        if not self._requested(manager):
            return
        manager.execute_jit_checkpoint()
        if state.global_step >= state.max_steps:  # it is the result
            return
        self._leaves = True
        if not (control.should_evaluate or control.should_log or float(state.epoch).is_integer()):
            self._leave(state)
        control.should_save = True

    def _requested(self, manager: Any) -> bool:
        """Whether the signal has come, to this process or another: it reaches them in different steps, or only one."""
        trainer: Any = self.trainer
        accelerator = trainer.accelerator
        if accelerator.num_processes == 1:
            return bool(manager.is_checkpoint_requested)
        if manager.is_checkpoint_requested:
            accelerator.set_trigger()
        return bool(accelerator.check_trigger())

    def on_save(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if self._leaves:
            self._leave(state)

    def _leave(self, state: TrainerState) -> NoReturn:
        manager: Any = self.jit_manager
        signal.signal(signal.SIGTERM, manager._original_sigterm_handler or signal.SIG_DFL)
        logger.warning(
            "SIGTERM: a checkpoint of step %d of %d is written, and this process ends. The run goes on with "
            "resume_from_checkpoint=True.",
            state.global_step,
            state.max_steps,
        )
        raise SystemExit(STATUS)
