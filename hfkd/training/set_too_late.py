"""Arguments and parts of a trainer that were set once they had been read: refused, or said."""

import dataclasses
import logging
from functools import partial
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_pt_utils import LabelSmoother

from hfkd.arguments import DistillationArguments
from hfkd.data.he_da_arguments import HighEnergyArguments
from hfkd.losses.distillation import SLOTS, WEIGHTS, DistillationLoss
from hfkd.models import Peers
from hfkd.training.overridden_loss import refuse_loss_function

logger = logging.getLogger(__name__)
# Arguments that a trainer, or Trainer, reads only when it is built.
TAKEN = (
    *SLOTS,
    *WEIGHTS,
    "label_smoothing_factor",
    "task",
    "segmentation_stride",
    "loss_chunk_size",
    "label_names",
    "teacher_cache_dir",
    "channels_last",
    "shard_teacher",
    "on_nan",
    "per_device_train_batch_size",
    "neftune_noise_alpha",
    "bf16",
    "fp16",
    "torch_compile",
    *(field.name for field in dataclasses.fields(HighEnergyArguments)),
)
WRITES = ("on_policy", "seq_kd")  # read in each step of a trainer that was built with one of them, and else never
# Arguments by which a training is planned when it starts, and which it does not read again.
PLANNED = (
    *("learning_rate", "weight_decay", "optim", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("lr_decay_epochs", "lr_decay_factor", "num_train_epochs", "max_steps"),
    *("logging_steps", "eval_steps", "save_steps"),
)
GROUP = "gradient_accumulation_steps"  # which it does read again, in the middle of that plan


def taken(args: DistillationArguments) -> dict[str, Any]:
    """The current values of the arguments that a trainer reads only once."""
    return {name: getattr(args, name) for name in (*TAKEN, *(() if args.writes else WRITES))}


def planned(args: DistillationArguments) -> dict[str, Any]:
    """The current values of the arguments by which a training is planned."""
    return {name: getattr(args, name) for name in (*PLANNED, GROUP)}


class RefuseChanged(TrainerCallback):
    """Raises ValueError in the step after an argument, or a weight of the loss, was set by a callback too late to have
    an effect; warns once of those that have it in the next training."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        _refuse_changed_arguments(self.trainer)
        _refuse_other_loss(self.trainer)
        _refuse_raised_weights(self.trainer.distillation_loss)
        plan = self.trainer.built.planned
        for name, now in planned(args).items():
            if now == plan[name]:
                continue
            if name == GROUP:
                raise ValueError(
                    f"args.{name} was set to {now!r} in training, whose steps are planned with {plan[name]!r}: set it "
                    "between two trainings"
                )
            logger.warning(
                "args.%s was set to %r in training, which was planned with %r: without effect before the next train().",
                name,
                now,
                plan[name],
            )
            plan[name] = now


def _refuse_changed_arguments(trainer: Any) -> None:
    for name, was in trainer.built.taken.items():
        if (now := getattr(trainer.args, name)) != was:
            during = f", or set trainer.distillation_loss.{name}, which may change in training"
            raise ValueError(
                f"args.{name} was set to {now!r} after the trainer had been built with {was!r}, which would have "
                f"no effect: build a new trainer{during if name in WEIGHTS and was else ''}"
            )


def _refuse_raised_weights(loss: DistillationLoss) -> None:
    """Raise ValueError for a weight of the loss above 0 in a trainer that was built without that part."""
    if loss.kd_weight and not loss.distils:
        raise ValueError(
            f"distillation_loss.kd_weight was set to {loss.kd_weight:g} in a trainer that was built with kd_weight=0, "
            "for which teacher and slots were neither checked nor made ready: build it with a kd_weight above 0, and "
            "set that of the loss to 0 in a callback's on_train_begin"
        )
    if loss.ce_weight and not loss.labelled:
        raise ValueError(
            f"distillation_loss.ce_weight was set to {loss.ce_weight:g} in a trainer that was built with ce_weight=0 "
            "and reads no labels, so that it would have no effect: build it with a ce_weight above 0, for rows with "
            "labels"
        )


def refuse_changed(trainer: Any) -> None:
    """Raise ValueError for attributes of a trainer, or of its arguments, that were set too late to have an effect."""
    _refuse_changed_arguments(trainer)
    _refuse_raised_weights(trainer.distillation_loss)
    _refuse_other_networks(trainer)
    refuse_loss_function(trainer.compute_loss_func)
    if trainer.label_smoother is not None and (trainer.args.loss_chunk_size or isinstance(trainer.model, Peers)):
        raise ValueError(
            "a custom label_smoother needs one student's whole logits, which are not available with "
            "loss_chunk_size or Peers: leave it out, or set label_smoothing_factor"
        )
    if isinstance(trainer.label_smoother, LabelSmoother) and not trainer.task.class_ids:
        raise ValueError(
            f"transformers' LabelSmoother needs one class per item, but the labels of {trainer.task.name} are "
            "binary: leave it out, or smooth the labels in the data"
        )
    if trainer.label_smoother is not None and trainer.task.follows_student:
        raise ValueError(
            f"a custom label_smoother would be added to the model's own loss, which {trainer.task.name} uses "
            "unchanged: leave it out"
        )


def _refuse_other_networks(trainer: Any) -> None:
    """Raise ValueError if `trainer.model` or its teacher was replaced after the trainer was built."""
    bare = partial(trainer.accelerator.unwrap_model, keep_torch_compile=False)
    if bare(trainer.model) is not bare(trainer.setup.model):
        raise ValueError(
            f"trainer.model was set to another {type(bare(trainer.model)).__name__} after the trainer had been "
            "built, which would still train the first: pass it as model=, or pass model_init= to create a "
            "student for each training"
        )
    refuse_other_teacher(trainer)
    _refuse_other_loss(trainer)


def _refuse_other_loss(trainer: Any) -> None:
    """Raise ValueError if `trainer.distillation_loss` was replaced after the trainer was built."""
    if trainer.distillation_loss is not trainer.setup.loss:
        raise ValueError(
            f"trainer.distillation_loss was set to a {type(trainer.distillation_loss).__name__} after the trainer had "
            f"been built, which would still train with {trainer.setup.loss!r}: build a new trainer, with the student "
            "as it is"
        )


def refuse_other_teacher(trainer: Any) -> None:
    """Raise ValueError if `trainer.teacher` was replaced after the trainer was built."""
    if trainer.teacher is not trainer.built.teacher:
        raise ValueError(
            f"trainer.teacher was set to a {type(trainer.teacher).__name__} after the trainer had been built, too "
            "late to check and freeze it: build a new trainer with teacher="
        )
