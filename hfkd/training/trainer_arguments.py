"""Compatibility with scripts for Trainer: args as second argument, TrainingArguments instead of hfkd's."""

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any, TypeVar, cast

from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from hfkd.arguments import DistillationArguments
from hfkd.data.he_da_arguments import HighEnergyArguments
from hfkd.losses.distillation import DistillationLoss
from hfkd.models import Peers

logger = logging.getLogger(__name__)

Init = TypeVar("Init", bound=Callable[..., None])
TRAINERS_ORDER = ("data_collator", "train_dataset", "eval_dataset", "processing_class", "model_init")
# Arguments that a trainer, or Trainer, reads only when it is built.
TAKEN = (
    "objective",
    "temperature",
    "weighting",
    "ce_weight",
    "kd_weight",
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
WEIGHTS = ("ce_weight", "kd_weight")
# What distillation trainers elsewhere call the weight of their loss; some give it to the labels, some to the teacher.
WEIGHTS_ELSEWHERE = ("alpha", "kd_alpha", "alpha_kd", "alpha_ce", "distill_alpha", "lambda_param", "lambda_kd")
# How Trainer calls methods that subclasses override: positional arguments, and names of keyword arguments. Without
# `log`, which gets start_time only for the log of a training step: a log(self, logs) works otherwise.
CALLED: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "compute_loss": (({}, {}), ("num_items_in_batch",)),
    "training_step": (({}, {}, None), ()),
    "prediction_step": (({}, {}, True), ("ignore_keys",)),
    "create_scheduler": ((), ("num_training_steps", "optimizer")),
}
OF_TRAINER = tuple(one.name for one in dataclasses.fields(TrainingArguments) if one.init)
SLOTS = ("objective", "temperature", "weighting", *WEIGHTS)
# Arguments by which a training is planned when it starts, and which it does not read again.
PLANNED = (
    *("learning_rate", "weight_decay", "optim", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("lr_decay_epochs", "lr_decay_factor", "num_train_epochs", "max_steps"),
    *("logging_steps", "eval_steps", "save_steps"),
)
GROUP = "gradient_accumulation_steps"  # which it does read again, in the middle of that plan


def in_trainers_order(init: Init) -> Init:
    """Let `init(self, model, teacher, args)` also take Trainer's order: (model, args, data_collator, ...).

    Trainer's order is detected by TrainingArguments in second place; the teacher is then a keyword argument. Type
    checkers and editors know the first order only.
    """

    @wraps(init)
    def accepting(self: Any, *given: Any, **keywords: Any) -> None:
        if len(given) > 1 and isinstance(given[1], TrainingArguments):
            model, args, *others = given
            named = {"args": args} | dict(zip(TRAINERS_ORDER, others, strict=False))
            if twice := sorted(named.keys() & keywords.keys()) or others[len(TRAINERS_ORDER) :]:
                raise TypeError(
                    f"DistillationTrainer(model, args, ...) got {twice} twice, or as an unknown positional argument"
                )
            given, keywords = (model,), keywords | named
        init(self, *given, **keywords)

    return cast(Init, accepting)


def own_arguments(args: TrainingArguments | None, slots: Mapping[str, Any]) -> DistillationArguments:
    """`args`, or TrainingArguments converted to DistillationArguments with default slots, which is logged.

    Further attributes of their subclass are copied for the user's own code, with a warning that names those that have
    no effect here. slots: those that the trainer was given itself, None for the others. Raises ValueError for anything
    else, for `predict_with_generate`, which is not supported, and for a subclass with a slot of its own.
    """
    if args is None:
        return DistillationArguments(output_dir="distilled")
    if getattr(args, "predict_with_generate", False):
        raise ValueError(
            "predict_with_generate=True is an option of Seq2SeqTrainer; DistillationTrainer evaluates logits on "
            "labels: leave it out, and generate after training with trainer.model.generate, or in a callback"
        )
    if isinstance(args, DistillationArguments):
        _warn_of_weights(args, slots)
        return args
    if not isinstance(args, TrainingArguments):
        raise ValueError(f"args is a {type(args).__name__}: pass hfkd.DistillationArguments, or TrainingArguments")
    _refuse_own_slots(args, slots)
    given = {name: value for name in OF_TRAINER if (value := getattr(args, name)) is not None}
    own = DistillationArguments(**given)
    unread = _unread(args, own)
    vars(own).update({name: value for name, value in vars(args).items() if name not in vars(own)})
    logger.warning(
        "%s are converted to DistillationArguments, with defaults for the settings of distillation: %s. To "
        "change these, pass DistillationArguments, or keyword arguments of the trainer.",
        type(args).__name__,
        ", ".join(f"{name}={getattr(own, name)}" for name in SLOTS),
    )
    if unread:
        logger.warning(
            "%s sets %s, which DistillationTrainer does not read: without effect on the data and the loss.",
            type(args).__name__,
            ", ".join(unread),
        )
    return own


def _warn_of_weights(args: DistillationArguments, slots: Mapping[str, Any]) -> None:
    """Warn of a weight of the loss that a subclass has under a name used elsewhere, if those of hfkd are not set."""
    defaults = {one.name: one.default for one in dataclasses.fields(DistillationArguments) if one.name in WEIGHTS}
    if any(slots.get(name) is not None or getattr(args, name) != default for name, default in defaults.items()):
        return
    if own := [f"{name}={value!r}" for name, value in vars(args).items() if name in WEIGHTS_ELSEWHERE]:
        logger.warning(
            "%s sets %s, which DistillationTrainer does not read: the loss has ce_weight=%g and kd_weight=%g; set "
            "these two.",
            type(args).__name__,
            ", ".join(own),
            args.ce_weight,
            args.kd_weight,
        )


def _refuse_own_slots(args: TrainingArguments, slots: Mapping[str, Any]) -> None:
    """Raise ValueError for a slot or weight in a subclass of TrainingArguments, unless the trainer was given it too.

    TRL's GKDConfig has the temperature of its sampling there, and scripts for distillation that of their own loss.
    """
    own = {name: vars(args)[name] for name in SLOTS if vars(args).get(name) is not None and slots.get(name) is None}
    if own:
        said = ", ".join(f"{name}={value!r}" for name, value in own.items())
        raise ValueError(
            f"args, a {type(args).__name__}, has {said}, which is not read from there, as it may be that of another "
            f"trainer: pass {' and '.join(f'{name}=' for name in own)} to DistillationTrainer"
        )


def _unread(args: TrainingArguments, own: DistillationArguments) -> list[str]:
    """The names of what a subclass of TrainingArguments sets, other than by default, beside Trainer's settings."""
    defaults = {
        one.name: one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
        for one in dataclasses.fields(args)
    }
    ours = {one.name for one in dataclasses.fields(own)} - {*OF_TRAINER}
    named = {name for name in vars(args) if not name.startswith("_")} - ({*vars(own)} - ours) - {*SLOTS}
    return sorted(name for name in named if repr(vars(args)[name]) != repr(defaults.get(name)))


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


def refuse_loss_function(compute_loss_func: Any) -> None:
    """Raise ValueError for Trainer's `compute_loss_func`."""
    if compute_loss_func is not None:
        raise ValueError(
            "compute_loss_func would replace the whole loss, including distillation: register a custom loss as "
            "an objective (hfkd.losses.registry.register_objective), which returns one value per item, and pass "
            "objective="
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
