"""The step schedule of the learning rate, as in the CIFAR papers, and settings that count epochs."""

import logging
from bisect import bisect_right
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR
from transformers.trainer_utils import has_length

from hfkd.arguments import DistillationArguments
from hfkd.losses.base import requirements_of
from hfkd.losses.distillation import DistillationLoss
from hfkd.training.host import Host

logger = logging.getLogger(__name__)


class Schedule:
    """The schedule of `lr_decay_epochs`, and the number of epochs done."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.epochs_are_known = True
        self._steps_per_epoch = 0

    def start(self, steps_per_epoch: int, max_steps: int, dataloader: Any) -> None:
        """Record the lengths. Raises ValueError if a setting counts epochs and the length of an epoch is unknown."""
        self._steps_per_epoch = steps_per_epoch
        loss = self.host.distillation_loss
        refuse_unknown_epochs(loss, self.host.args, dataloader)
        self.epochs_are_known = has_length(dataloader)
        if self.epochs_are_known:
            _warn_of_long_warmups(loss, max_steps / steps_per_epoch)

    @property
    def progress(self) -> float | None:
        """Epochs done, fractional; None on a stream of unknown length (Trainer counts shares of max_steps there)."""
        return float(self.host.state.epoch or 0.0) if self.epochs_are_known else None

    def make(self, num_training_steps: int, optimizer: torch.optim.Optimizer) -> LRScheduler | None:
        """The schedule of `lr_decay_epochs`; None if unset."""
        args = self.host.args
        if args.lr_decay_epochs is None:
            return None
        milestones = [round(epoch * self._steps_per_epoch) for epoch in args.lr_decay_epochs]
        _warn_of_late_decays(args.lr_decay_epochs, milestones, num_training_steps)
        return multi_step(optimizer, milestones, args.lr_decay_factor, args.get_warmup_steps(num_training_steps))


def multi_step(optimizer: torch.optim.Optimizer, milestones: list[int], factor: float, warmup: int) -> LRScheduler:
    """Multiplies the rate by `factor` after each milestone, and by step / warmup in the first `warmup` steps."""
    if not warmup:
        at_first_rate(optimizer)  # MultiStepLR goes on from the rate that an earlier schedule has left
        return MultiStepLR(optimizer, milestones, gamma=factor)
    return LambdaLR(optimizer, lambda step: min(step / warmup, 1.0) * factor ** bisect_right(milestones, step))


def at_first_rate(optimizer: torch.optim.Optimizer) -> None:
    """Give each group the learning rate with which its first schedule began."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"])


def _warn_of_late_decays(epochs: list[float], milestones: list[int], last_step: int) -> None:
    late = [f"{epoch:g}" for epoch, step in zip(epochs, milestones, strict=True) if step >= last_step]
    if late:
        said = "lr_decay_epochs=%s: training ends at step %d, before epoch %s is over."
        logger.warning(said, epochs, last_step, ", ".join(late))


def refuse_unknown_epochs(loss: DistillationLoss, args: DistillationArguments, rows: Any) -> None:
    """Raise ValueError if a setting counts epochs and `rows` is a stream without a length."""
    if rows is None or has_length(rows):
        return
    counting = {repr(slot): "set warmup_epochs=0" for slot, _ in _warmups(loss)}
    if args.lr_decay_epochs is not None:
        counting[f"lr_decay_epochs={args.lr_decay_epochs}"] = "leave it out (null in YAML) for an lr_scheduler_type"
    for what, remedy in counting.items():
        raise ValueError(
            f"{what} counts epochs, and the training stream has no length, so that the end of an epoch is "
            f"unknown: give it a __len__ that returns the rows per epoch, or {remedy}"
        )


def _warmups(loss: DistillationLoss) -> list[tuple[Any, float]]:
    """The slots whose warm-up counts epochs, with that number."""
    slots = loss.slots if loss.kd_weight else ()
    return [(slot, epochs) for slot in slots if (epochs := requirements_of(slot).epochs)]


def _warn_of_long_warmups(loss: DistillationLoss, epochs: float) -> None:
    for slot, warmup in _warmups(loss):
        if warmup > epochs:
            logger.warning(
                "%r warms up over %g epochs, and this run has %g: training ends before the warm-up does. Lower "
                "warmup_epochs (0: no warm-up) if this is not intended.",
                slot,
                warmup,
                epochs,
            )
