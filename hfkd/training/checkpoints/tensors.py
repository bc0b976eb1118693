"""Saves and loads the files of a run as tensors and plain numbers only; no file is unpickled into objects."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, __version__
from transformers.trainer import SCHEDULER_NAME
from transformers.utils import CONFIG_NAME

from hfkd.models.checkpoints import naming_unreadable
from hfkd.teachers.fingerprint import sampled_weights
from hfkd.training import loss_parameters
from hfkd.training.checkpoints.manifest import MANIFEST, incomplete
from hfkd.training.checkpoints.optimizer_state import as_laid_out
from hfkd.training.checkpoints.student_weights import load_student, to_save
from hfkd.training.host import Host
from hfkd.training.weight_decay import group_as_trainer

OTHER_GROUPS = "parameter group"  # in torch's message for a state whose groups have other sizes
logger = logging.getLogger(__name__)


class TensorCheckpoints:
    """Saving and loading of a run's files. A file that holds pickled objects or is damaged is a ValueError naming it.

    The student's files hold the student alone; the parameters of the loss and the run's record are separate files.
    `write` and `load` are the corresponding functions of Trainer.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._unresumed: tuple[str, Tensor] | None = None  # loaded for a training that has not begun, with its weights

    @property
    def student(self) -> nn.Module:
        return cast(nn.Module, self.host.model)

    def save(
        self, write: Callable[[str | None, Any], None], output_dir: str | None, state_dict: dict[str, Any] | None
    ) -> None:
        host = self.host
        with loss_parameters.without_loss(self.student):
            write(output_dir, to_save(self.student, loss_parameters.students_own(state_dict)))
        if host.args.should_save:
            folder = output_dir or host.args.output_dir or "."
            loss_parameters.write(host.distillation_loss, folder)
            host.record.write(folder, host.distillation_loss)

    def load(self, load: Callable[[], None], checkpoint: str) -> None:
        with loss_parameters.without_loss(self.student), naming_unreadable(checkpoint):
            if self._loaded_by_a_library:
                load()
            else:
                _note_version(checkpoint)
                load_student(self.student, checkpoint)
        loss_parameters.read(self.host.distillation_loss, checkpoint)
        self._unresumed = checkpoint, sampled_weights([self.student])

    def begun(self) -> None:
        """Called when the training for which a checkpoint was loaded begins."""
        self._unresumed = None

    def say_unresumed(self) -> None:
        """Warn if the student has the weights of a checkpoint whose training was refused after they were loaded."""
        loaded, self._unresumed = self._unresumed, None
        if loaded is not None and torch.equal(loaded[1], sampled_weights([self.student])):
            logger.warning(
                "The student still has the weights of %s, from which a training was to be resumed that ended in an "
                "error before its first step: this one starts with them. For one from the start build another trainer, "
                "with the student as it was.",
                loaded[0],
            )

    def load_best(self, load: Callable[[], None]) -> None:
        """As in Trainer, but missing weights are an error instead of a warning."""
        best, score = self.host.state.best_model_checkpoint, self.host.state.best_metric
        assert best is not None
        if (Path(best) / MANIFEST).exists() and (fault := incomplete(best, contents=True)):
            raise ValueError(
                f"the best checkpoint, {best}, cannot be loaded: {fault}. Training itself has ended; the last "
                "checkpoint has the weights of the last step"
            )
        with loss_parameters.without_loss(self.student), naming_unreadable(best):
            if self._loaded_by_a_library:
                load()
            else:
                logger.info("Loading the best checkpoint: %s (score %s)", best, score)
                load_student(self.student, best)
        loss_parameters.read(self.host.distillation_loss, best)

    def load_optimizer(
        self, load: Callable[[], None], checkpoint: str | None, decayed: Callable[[nn.Module], list[str]]
    ) -> None:
        """Load the state of optimizer and schedule; decayed: Trainer's rule of what it applies weight decay to."""
        optimizer = cast(torch.optim.Optimizer, self.host.optimizer)
        own = set() if checkpoint is None or self._loaded_by_a_library else set(getattr(optimizer, "defaults", ()))
        with naming_unreadable(checkpoint or ""):
            if checkpoint is not None and not self.host.is_deepspeed_enabled:
                _refuse_other_schedule(self.host.lr_scheduler, Path(checkpoint))
            try:
                load()
            except ValueError as error:
                names = set() if self.host.args.decay_bias_and_norm else set(decayed(self.student))
                if not names or OTHER_GROUPS not in str(error) or not group_as_trainer(optimizer, self.student, names):
                    raise
                load()
                logger.warning("%s has the weights of norms among those with weight decay, and goes on so", checkpoint)
        if own:
            _refuse_other_kind(optimizer, own, checkpoint)
            as_laid_out(optimizer)

    @property
    def _loaded_by_a_library(self) -> bool:
        """Whether FSDP or DeepSpeed load their own checkpoints, strictly, into the wrapped student."""
        return self.host.is_fsdp_enabled or self.host.is_deepspeed_enabled


def _refuse_other_kind(optimizer: torch.optim.Optimizer, own: set[str], checkpoint: str | None) -> None:
    """Raise ValueError if the loaded state is that of another kind of optimizer."""
    missing = sorted(own - set(optimizer.param_groups[0]))
    if missing:
        raise ValueError(
            f"{checkpoint} has the state of another kind of optimizer, without {', '.join(missing)}: resume with "
            "the optimizer (optim) that the run was started with, or start a new run in another output_dir"
        )


def _refuse_other_schedule(schedule: Any, checkpoint: Path) -> None:
    """Raise ValueError if the stored state is that of another kind of schedule, from which this one cannot go on."""
    if not (checkpoint / SCHEDULER_NAME).is_file():
        return
    stored = torch.load(checkpoint / SCHEDULER_NAME, map_location="cpu", weights_only=True)
    mine, its = ({name for name in state if not name.startswith("_")} for state in (schedule.state_dict(), stored))
    if mine - its and its - mine:  # one alone: another version of torch
        raise ValueError(
            f"{checkpoint} has the state of another kind of learning rate schedule, with "
            f"{', '.join(sorted(its - mine))} instead of {', '.join(sorted(mine - its))}: resume with the "
            "lr_scheduler_type, or lr_decay_epochs and warmup_steps, that the run was started with, or start a new run "
            "in another output_dir"
        )


def _note_version(checkpoint: str) -> None:
    if (Path(checkpoint) / CONFIG_NAME).is_file():
        version = PreTrainedConfig.get_config_dict(checkpoint)[0].get("transformers_version")
        if version not in (None, __version__):
            logger.warning(
                "%s was written with transformers %s, but %s is installed: the resumed run may differ from an "
                "uninterrupted one",
                checkpoint,
                version,
                __version__,
            )
