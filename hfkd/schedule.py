"""How the learning rate falls and what decays, as the CIFAR literature has it."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from transformers import Trainer
from transformers.trainer_utils import has_length

from hfkd.arguments import DistillationArguments


class ScheduledTrainer(Trainer):
    """Trainer with `lr_decay_epochs`, the rate multiplied after these epochs, and with `decay_bias_and_norm`."""

    args: DistillationArguments

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.callers_optimizer, self.callers_scheduler = self.optimizer, self.lr_scheduler  # Trainer's come later

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self.args.decay_bias_and_norm:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def set_initial_training_values(self, *arguments: Any, **keywords: Any) -> Any:
        values = super().set_initial_training_values(*arguments, **keywords)
        self._steps_per_epoch = values[1]
        return values

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        if self.args.lr_decay_epochs is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        optimizer = optimizer or self.optimizer
        assert optimizer is not None
        milestones = decay_steps(self.args.lr_decay_epochs, self._steps_per_epoch, self.train_dataset)
        scheduler = MultiStepLR(optimizer, milestones, gamma=self.args.lr_decay_factor)
        self.lr_scheduler, self._created_lr_scheduler = scheduler, True  # type: ignore[assignment]
        return scheduler


def decay_steps(epochs: list[float], steps_per_epoch: int, train_dataset: Any) -> list[int]:
    """The steps after which `lr_decay_epochs` are over; ValueError for a stream of unknown length."""
    if not has_length(train_dataset):
        raise ValueError(
            f"lr_decay_epochs={epochs} count epochs, and this stream does not say how many images it has: set "
            "lr_decay_epochs to null in the YAML file, and choose an lr_scheduler_type"
        )
    return [round(epoch * steps_per_epoch) for epoch in epochs]
