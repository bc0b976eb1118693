"""The flags of the learning rate's schedule, checked when the arguments are built and not when training starts."""

import logging
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler

from hfkd.utils.optimizers import optimizer_name

logger = logging.getLogger(__name__)


def check_decay(epochs: Any, factor: float) -> None:
    """Raise ValueError for `lr_decay_epochs` that do not ascend, or an `lr_decay_factor` outside of (0, 1]."""
    if epochs is not None:
        numbers = isinstance(epochs, (list, tuple)) and all(isinstance(e, (int, float)) for e in epochs)
        if (
            not numbers
            or not all(0 < e < float("inf") and not isinstance(e, bool) for e in epochs)
            or list(epochs) != sorted(set(epochs))
        ):
            raise ValueError(f"lr_decay_epochs={epochs} must be ascending epochs above 0, such as [150, 180]")
    if not 0 < factor <= 1:
        raise ValueError(f"lr_decay_factor={factor} must be in (0, 1]: the learning rate is multiplied by it")


def follows_metric(args: TrainingArguments) -> bool:
    """Whether the schedule changes the learning rate by evaluations, from the one at hand."""
    return args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


def follow_metric(args: TrainingArguments) -> None:
    """Give schedules that follow the metric its direction: for transformers a smaller one is always better."""
    if follows_metric(args) and args.greater_is_better:
        given: Any = args.lr_scheduler_kwargs or {}
        args.lr_scheduler_kwargs = {"mode": "max", **given}


def check_warm_up(args: TrainingArguments, steps: bool) -> None:
    """Raise ValueError for `warmup_steps` that the optimizer takes for another number; warn of those without effect.

    steps: whether the schedule is that of `lr_decay_epochs`, which has a warm-up.
    """
    itself = optimizer_name(args.optim) in ("schedule_free_adamw", "schedule_free_sgd")  # it has one of its own
    unused = follows_metric(args) or args.lr_scheduler_type == SchedulerType.CONSTANT
    if unused and args.warmup_steps and not steps and not itself:
        logger.warning(
            "warmup_steps=%g has no effect with lr_scheduler_type=%r: constant_with_warmup has a warm-up.",
            args.warmup_steps,
            SchedulerType(args.lr_scheduler_type).value,
        )
    if itself and 0 < args.warmup_steps < 1:
        raise ValueError(
            f"warmup_steps={args.warmup_steps:g} is a share of all steps, but a schedule-free optimizer takes it "
            "for a number of them, and would multiply the learning rate of its first step by "
            f"{1 / args.warmup_steps:g}: set warmup_steps to the number of steps"
        )


def check_schedule(args: TrainingArguments) -> None:
    """Make transformers' schedule once: raises ValueError for wrong `lr_scheduler_kwargs`."""
    steps = args.max_steps if args.max_steps > 0 else 1000
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    given: Any = args.lr_scheduler_kwargs
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps, given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"lr_scheduler_type={SchedulerType(args.lr_scheduler_type).value!r} does not go with "
            f"lr_scheduler_kwargs={given}: {error}"
        ) from error
