"""Methods of Trainer that a subclass overrides, and other losses given to it: what would leave out the teacher."""

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from transformers import Trainer

logger = logging.getLogger(__name__)
# How Trainer calls methods that subclasses override: positional arguments, and names of keyword arguments. Without
# `log`, which gets start_time only for the log of a training step: a log(self, logs) works otherwise.
CALLED: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "compute_loss": (({}, {}), ("num_items_in_batch",)),
    "training_step": (({}, {}, None), ()),
    "prediction_step": (({}, {}, True), ("ignore_keys",)),
    "create_scheduler": ((), ("num_training_steps", "optimizer")),
}


def refuse_old_methods(trainer: Any) -> None:
    """Raise ValueError for an overridden method that does not accept Trainer's arguments, as for earlier versions."""
    for name, (given, named) in CALLED.items():
        own = getattr(type(trainer), name)
        try:
            inspect.signature(own).bind(trainer, *given, **dict.fromkeys(named))
        except TypeError as error:
            wanted = inspect.signature(getattr(Trainer, name))
            names = ", ".join(str(one.replace(annotation=one.empty)) for one in wanted.parameters.values())
            raise ValueError(
                f"{type(trainer).__name__}.{name} does not accept the arguments of Trainer in transformers 5 "
                f"({error}): define it as {name}({names})"
            ) from error


def refuse_loss_function(compute_loss_func: Any) -> None:
    """Raise ValueError for Trainer's `compute_loss_func`."""
    if compute_loss_func is not None:
        raise ValueError(
            "compute_loss_func would replace the whole loss, including distillation: register a custom loss as "
            "an objective (hfkd.losses.registry.register_objective), which returns one value per item, and pass "
            "objective="
        )


def refuse_replaced_loss(trainer: Any, ours: type) -> None:
    """Raise ValueError if a step was computed without the `compute_loss` of the class `ours`, and so without teacher.

    Without `kd_weight` a subclass may have a loss of its own. That of several batches is warned of once, unless it says
    how they are added up: Trainer divides what is not scaled, but the class `ours` says that its own loss is.
    """
    if trainer.judged.parts.pending:
        return
    own = type(trainer)
    if trainer.distillation_loss.kd_weight:
        raise ValueError(
            f"compute_loss of {own.__name__} does not call super().compute_loss, so that teacher, "
            "objective, temperature and weighting have no effect: add your term to the loss that "
            "super().compute_loss returns, register a custom loss as an objective "
            "(hfkd.losses.registry.register_objective), or set kd_weight=0 to train on your loss alone"
        )
    says = any("loss_is_scaled_for_ga" in vars(kind) for kind in own.__mro__[: own.__mro__.index(ours)])
    if trainer.batches_in_step > 1 and not says and not trainer.warned_of_count:
        trainer.warned_of_count = True
        logger.warning(
            "The losses of %d accumulated batches that compute_loss of %s returns are added up. If each is the mean of "
            "its batch, set the class attribute loss_is_scaled_for_ga=False, and Trainer divides them by their number; "
            "if each is divided by num_items_in_batch, set it to True.",
            trainer.batches_in_step,
            own.__name__,
        )


def refuse_popped_labels(trainer: Any, inputs: Mapping[str, Any]) -> None:
    """Raise ValueError for a batch without labels, which a subclass's `compute_loss` has taken out."""
    if "labels" not in inputs:
        raise ValueError(
            f"{type(trainer).__name__} calls compute_loss with a batch that has no labels but {sorted(inputs)}: read "
            "inputs['labels'] in place of inputs.pop('labels'), as the loss is computed from them"
        )


def refuse_dropped_count(trainer: Any, ours: Callable[..., Any]) -> None:
    """Raise ValueError if a subclass's `compute_loss`, not `ours`, does not pass on an accumulated batch's item count.

    Each of its batches would be divided by its own number of items, so that loss and gradient are larger by their
    number. A `training_step` of its own may divide by that itself, and is warned.
    """
    own = type(trainer)
    message = (
        f"{own.__name__} calls compute_loss without num_items_in_batch, so that each of the "
        f"{trainer.batches_in_step} accumulated batches counts as a whole step: pass it on, as in "
        "super().compute_loss(model, inputs, return_outputs, num_items_in_batch), and divide by nothing"
    )
    if own.training_step is not Trainer.training_step:
        if not trainer.warned_of_count:
            logger.warning("%s.", message)
        trainer.warned_of_count = True
    elif own.compute_loss is not ours:
        raise ValueError(message)
