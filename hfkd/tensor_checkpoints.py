"""What a resumed run reads: tensors and plain numbers, whatever somebody put into the checkpoint."""

from typing import Any

from transformers import Trainer

from hfkd.models.checkpoints import naming_unreadable


class TensorCheckpoints(Trainer):
    """Trainer, which unpickles no objects, with a ValueError that names the file that holds some, or is damaged."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with naming_unreadable(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with naming_unreadable(checkpoint or ""):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with naming_unreadable(checkpoint or ""):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with naming_unreadable(checkpoint or ""):
            super()._load_rng_state(checkpoint)
