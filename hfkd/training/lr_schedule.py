"""How the learning rate falls and what decays, as the CIFAR literature has it; and what counts epochs at all."""

import logging
from bisect import bisect_right
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR
from transformers import Trainer
from transformers.trainer_utils import has_length

from hfkd.arguments import DistillationArguments
from hfkd.losses.base import requirements_of
from hfkd.losses.distillation import DistillationLoss

logger = logging.getLogger(__name__)


class ScheduledTrainer(Trainer):
    """Trainer with `lr_decay_epochs`, the rate multiplied after these epochs, and with `decay_bias_and_norm`."""

    args: DistillationArguments
    distillation_loss: DistillationLoss
    epochs_are_known = True

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.callers_optimizer, self.callers_scheduler = self.optimizer, self.lr_scheduler  # Trainer's come later

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self.args.decay_bias_and_norm:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        values = super().set_initial_training_values(args, dataloader)
        self._steps_per_epoch, max_steps = values[1], values[6]
        refuse_unknown_epochs(self.distillation_loss, self.args, dataloader)
        self.epochs_are_known = has_length(dataloader)
        if self.epochs_are_known:
            _warn_of_long_warmups(self.distillation_loss, max_steps / self._steps_per_epoch)
        return values

    @property
    def progress(self) -> float | None:
        """Epochs done, fractional; None on a stream of unknown length (Trainer counts shares of max_steps there)."""
        return float(self.state.epoch or 0.0) if self.epochs_are_known else None

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        if self.args.lr_decay_epochs is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        optimizer = optimizer or self.optimizer
        assert optimizer is not None
        milestones = [round(epoch * self._steps_per_epoch) for epoch in self.args.lr_decay_epochs]
        _warn_of_late_decays(self.args.lr_decay_epochs, milestones, num_training_steps)
        warmup = self.args.get_warmup_steps(num_training_steps)
        scheduler = multi_step(optimizer, milestones, self.args.lr_decay_factor, warmup)
        self.lr_scheduler, self._created_lr_scheduler = scheduler, True  # type: ignore[assignment]
        return scheduler


def multi_step(optimizer: torch.optim.Optimizer, milestones: list[int], factor: float, warmup: int) -> LRScheduler:
    """The rate times `factor` after each milestone; in the first `warmup` steps also times step / warmup."""
    if not warmup:
        return MultiStepLR(optimizer, milestones, gamma=factor)
    return LambdaLR(optimizer, lambda step: min(step / warmup, 1.0) * factor ** bisect_right(milestones, step))


def _warn_of_late_decays(epochs: list[float], milestones: list[int], last_step: int) -> None:
    late = [f"{epoch:g}" for epoch, step in zip(epochs, milestones, strict=True) if step >= last_step]
    if late:
        said = "lr_decay_epochs=%s: training ends at step %d, before epoch %s is over."
        logger.warning(said, epochs, last_step, ", ".join(late))


def refuse_unknown_epochs(loss: DistillationLoss, args: DistillationArguments, rows: Any) -> None:
    """Raise ValueError where something counts epochs, and `rows`, a stream, does not say how long one is."""
    if rows is None or has_length(rows):
        return
    counting = {repr(slot): "set warmup_epochs=0" for slot, _ in _warmups(loss)}
    if args.lr_decay_epochs is not None:
        counting[f"lr_decay_epochs={args.lr_decay_epochs}"] = "leave it out (null in YAML) for an lr_scheduler_type"
    for what, remedy in counting.items():
        raise ValueError(
            f"{what} counts epochs, and this training stream does not say how many rows it has, so nobody knows when "
            f"one is over: give it a __len__, the rows that are to count as one epoch, or {remedy}"
        )


def _warmups(loss: DistillationLoss) -> list[tuple[Any, float]]:
    """The slots whose warm-up counts epochs, and how many."""
    slots = (loss.objective, loss.temperature, loss.weighting) if loss.kd_weight else ()
    return [(slot, epochs) for slot in slots if (epochs := requirements_of(slot).epochs)]


def _warn_of_long_warmups(loss: DistillationLoss, epochs: float) -> None:
    for slot, warmup in _warmups(loss):
        if warmup > epochs:
            logger.warning(
                "%r warms up over %g epochs, and this run has %g: it ends before the warm-up does. Lower warmup_epochs "
                "(0: none) if that is not meant.",
                slot,
                warmup,
                epochs,
            )
