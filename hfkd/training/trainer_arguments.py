"""What is passed as scripts for Trainer pass it: arguments in second place, TrainingArguments in place of ours."""

import dataclasses
import inspect
import logging
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from hfkd.arguments import DistillationArguments
from hfkd.models import Peers

logger = logging.getLogger(__name__)

TRAINERS_ORDER = ("data_collator", "train_dataset", "eval_dataset", "processing_class", "model_init")
# What a trainer makes its loss, its batches and its networks' layout of when it is built.
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
)
# How Trainer calls what subclasses override: so many by position, and those by name. Not `log`, whose start_time comes
# with the log of a training step alone: a log(self, logs) of earlier versions works where there is none.
CALLED: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "compute_loss": (({}, {}), ("num_items_in_batch",)),
    "training_step": (({}, {}, None), ()),
    "prediction_step": (({}, {}, True), ("ignore_keys",)),
    "create_scheduler": ((), ("num_training_steps", "optimizer")),
}
OF_TRAINER = tuple(one.name for one in dataclasses.fields(TrainingArguments) if one.init)


def in_trainers_order(init: Callable[..., None]) -> Callable[..., None]:
    """`init(self, model, teacher, args)` that takes Trainer's order too: (model, args, data_collator, ...).

    It is known by arguments in second place; a teacher then comes by keyword.
    """

    @wraps(init)
    def accepting(self: Any, *given: Any, **keywords: Any) -> None:
        if len(given) > 1 and isinstance(given[1], TrainingArguments):
            model, args, *others = given
            named = {"args": args} | dict(zip(TRAINERS_ORDER, others, strict=False))
            if twice := sorted(named.keys() & keywords.keys()) or others[len(TRAINERS_ORDER) :]:
                raise TypeError(f"DistillationTrainer(model, args, ...) got {twice} twice, or in no known place")
            given, keywords = (model,), keywords | named
        init(self, *given, **keywords)

    return accepting


def own_arguments(args: TrainingArguments | None) -> DistillationArguments:
    """`args`, or TrainingArguments as DistillationArguments whose slots have their defaults; said in the log.

    What their subclass has beside them is found on the result too. Raises ValueError for anything else, and for
    `predict_with_generate`, which no evaluation here looks at.
    """
    if args is None:
        return DistillationArguments(output_dir="distilled")
    if isinstance(args, DistillationArguments):
        return args
    if not isinstance(args, TrainingArguments):
        raise ValueError(f"args is a {type(args).__name__}: pass hfkd.DistillationArguments, or TrainingArguments")
    if getattr(args, "predict_with_generate", False):
        raise ValueError(
            "predict_with_generate=True is Seq2SeqTrainer's, and evaluation here scores logits on labels: leave it "
            "out, and generate after training with trainer.model.generate, or in a callback of your own"
        )
    given = {name: value for name in OF_TRAINER if (value := getattr(args, name)) is not None}
    own = DistillationArguments(**given)
    vars(own).update({name: value for name, value in vars(args).items() if name not in vars(own)})
    slots = {name: getattr(own, name) for name in ("objective", "temperature", "weighting", "ce_weight", "kd_weight")}
    logger.warning(
        "%s are taken as DistillationArguments, with the defaults of what they do not have: %s. Pass "
        "DistillationArguments, or the trainer's keywords, for others.",
        type(args).__name__,
        ", ".join(f"{name}={value}" for name, value in slots.items()),
    )
    return own


def taken(args: DistillationArguments) -> dict[str, Any]:
    """The arguments that a trainer reads once, as they are now."""
    return {name: getattr(args, name) for name in TAKEN}


def refuse_changed(trainer: Any) -> None:
    """Raise ValueError for what was set on a trainer, or on its arguments, after it was built, and has no effect."""
    for name, was in trainer.taken.items():
        if (now := getattr(trainer.args, name)) != was:
            raise ValueError(
                f"args.{name} has been set to {now!r} after the trainer was built with {was!r}, which it goes on with: "
                "build another trainer"
            )
    _refuse_other_networks(trainer)
    refuse_loss_function(trainer.compute_loss_func)
    if trainer.label_smoother is not None and (trainer.args.loss_chunk_size or isinstance(trainer.model, Peers)):
        raise ValueError(
            "a label_smoother of your own takes one student's whole logits, which neither loss_chunk_size nor Peers "
            "give it: leave it out, or set label_smoothing_factor"
        )
    if isinstance(trainer.label_smoother, LabelSmoother) and not trainer.task.class_ids:
        raise ValueError(
            f"transformers' LabelSmoother is for one class an item, and each label of {trainer.task.name} is a yes or "
            "a no: leave it out, or smooth the labels themselves"
        )
    if trainer.label_smoother is not None and trainer.task.follows_student:
        raise ValueError(
            f"a label_smoother of your own would be added to the networks' own loss, which {trainer.task.name} takes "
            "as it is: leave it out"
        )


def _refuse_other_networks(trainer: Any) -> None:
    """Raise ValueError where `trainer.model` or `trainer.teacher` is no longer what the trainer was built around."""
    bare = partial(trainer.accelerator.unwrap_model, keep_torch_compile=False)
    if bare(trainer.model) is not bare(trainer.setup.model):
        raise ValueError(
            f"trainer.model has been set to another {type(bare(trainer.model)).__name__} after the trainer was built, "
            "which would train the first: pass it as model=, or give model_init= for a student for each training"
        )
    if trainer.teacher is not trainer.placed_teacher:
        raise ValueError(
            f"trainer.teacher has been set to a {type(trainer.teacher).__name__} after the trainer was built, which "
            "checks, freezes and places a teacher then: build another trainer with teacher="
        )


def refuse_old_methods(trainer: Any) -> None:
    """Raise ValueError for a method of a subclass that does not take what Trainer gives it, as of earlier versions."""
    for name, (given, named) in CALLED.items():
        own = getattr(type(trainer), name)
        try:
            inspect.signature(own).bind(trainer, *given, **dict.fromkeys(named))
        except TypeError as error:
            wanted = inspect.signature(getattr(Trainer, name))
            names = ", ".join(str(one.replace(annotation=one.empty)) for one in wanted.parameters.values())
            raise ValueError(
                f"{type(trainer).__name__}.{name} does not take what Trainer of transformers 5 gives it ({error}): "
                f"write it as {name}({names})"
            ) from error


def refuse_replaced_loss(trainer: Any) -> None:
    """Raise ValueError where a step was computed without the trainer's own `compute_loss`, teacher and all."""
    if trainer.distillation_loss.kd_weight and not trainer.judged.parts.pending:
        raise ValueError(
            f"compute_loss of {type(trainer).__name__} does not call super().compute_loss, so that neither the teacher "
            "nor objective, temperature and weighting have a part in the loss: add to what that returns, register a "
            "loss of your own as an objective (hfkd.losses.registry.register_objective), or say kd_weight=0 to train "
            "on your loss alone"
        )


def refuse_loss_function(compute_loss_func: Any) -> None:
    """Raise ValueError for Trainer's `compute_loss_func`."""
    if compute_loss_func is not None:
        raise ValueError(
            "compute_loss_func would replace the loss whole, teacher and all: register a loss of your own as an "
            "objective (hfkd.losses.registry.register_objective), one number per item, and pass objective="
        )
