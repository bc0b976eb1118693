"""What a run writes of itself and what a resumed one reads: tensors and plain numbers, whatever the files hold."""

import logging
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, Trainer, __version__
from transformers.utils import CONFIG_NAME

from hfkd.losses.distillation import DistillationLoss
from hfkd.models.checkpoints import naming_unreadable
from hfkd.training import loss_parameters
from hfkd.training.checkpoints.optimizer_state import as_laid_out
from hfkd.training.checkpoints.student_weights import load_student, to_save
from hfkd.training.run_identity import RunRecord

logger = logging.getLogger(__name__)


class TensorCheckpoints(Trainer):
    """Trainer, which unpickles no objects, with a ValueError that names the file that holds some, or is damaged.

    The student's own files hold the student alone; what the loss learned and what the run is stand beside them.
    """

    distillation_loss: DistillationLoss
    record: RunRecord

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        student = cast(nn.Module, self.model)
        with loss_parameters.without_loss(student):
            super()._save(output_dir, loss_parameters.students_own(state_dict) or to_save(student))
        if self.args.should_save:
            folder = output_dir or self.args.output_dir or "."
            loss_parameters.write(self.distillation_loss, folder)
            self.record.write(folder, self.distillation_loss)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        student = cast(nn.Module, self.model)
        with loss_parameters.without_loss(student), naming_unreadable(resume_from_checkpoint):
            if self._loaded_by_a_library:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                self._note_version(resume_from_checkpoint)
                load_student(student, resume_from_checkpoint)
        loss_parameters.read(self.distillation_loss, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """Trainer's, but without warnings in place of weights: what is not there is an error."""
        best, score = self.state.best_model_checkpoint, self.state.best_metric
        assert best is not None
        student = cast(nn.Module, self.model)
        with loss_parameters.without_loss(student), naming_unreadable(best):
            if self._loaded_by_a_library:
                super()._load_best_model()
            else:
                logger.info("The best checkpoint is loaded: %s (score %s)", best, score)
                load_student(student, best)
        loss_parameters.read(self.distillation_loss, best)

    @property
    def _loaded_by_a_library(self) -> bool:
        """Whether FSDP or DeepSpeed read checkpoints of their own, strictly, into the wrapped student."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _note_version(self, checkpoint: str) -> None:
        if (Path(checkpoint) / CONFIG_NAME).is_file():
            version = PreTrainedConfig.get_config_dict(checkpoint)[0].get("transformers_version")
            if version not in (None, __version__):
                logger.warning(
                    "%s was written with transformers %s, and this is %s: the resumed run may differ from one that "
                    "was never stopped",
                    checkpoint,
                    version,
                    __version__,
                )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with naming_unreadable(checkpoint or ""):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and not self._loaded_by_a_library:
            as_laid_out(cast(torch.optim.Optimizer, self.optimizer))

    def _load_scaler(self, checkpoint: str | None) -> None:
        with naming_unreadable(checkpoint or ""):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with naming_unreadable(checkpoint or ""):
            super()._load_rng_state(checkpoint)
