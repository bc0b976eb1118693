"""Compatibility with scripts for Trainer: args as second argument, TrainingArguments instead of hfkd's."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

from transformers import TrainingArguments

from hfkd.arguments import DistillationArguments
from hfkd.losses.distillation import SLOTS, WEIGHTS

logger = logging.getLogger(__name__)
Init = TypeVar("Init", bound=Callable[..., None])
TRAINERS_ORDER = ("data_collator", "train_dataset", "eval_dataset", "processing_class", "model_init")
# What distillation trainers elsewhere call the weight of their loss; some give it to the labels, some to the teacher.
WEIGHTS_ELSEWHERE = ("alpha", "kd_alpha", "alpha_kd", "alpha_ce", "distill_alpha", "lambda_param", "lambda_kd")
OF_TRAINER = tuple(one.name for one in dataclasses.fields(TrainingArguments) if one.init)
LOSS = (*SLOTS, *WEIGHTS)


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
        ", ".join(f"{name}={getattr(own, name)}" for name in LOSS),
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
    own = {name: vars(args)[name] for name in LOSS if vars(args).get(name) is not None and slots.get(name) is None}
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
    named = {name for name in vars(args) if not name.startswith("_")} - ({*vars(own)} - ours) - {*LOSS}
    return sorted(name for name in named if repr(vars(args)[name]) != repr(defaults.get(name)))
