"""The settings that determine the result of a run, for results.json, the report and the model card."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import SchedulerType, TrainerCallback

from hfkd.tasks.teacher_prompt import TeacherPromptLM
from hfkd.teachers import FrozenTeacher, Teacher
from hfkd.training.data_fingerprint import data_hash
from hfkd.training.forward.he_da import added_images
from hfkd.training.host import Host
from hfkd.training.student_layers import dropout_of
from hfkd.utils.launch import batch_sizes
from hfkd.utils.own_version import own_version

ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")
TRAINING = ("num_train_epochs", "max_steps", "max_grad_norm", "decay_bias_and_norm", "on_nan", "seed", "bf16")
CALLERS = "the caller's"
WITHIN = ("collate", "collator", "data_collator")  # attributes under which collators keep the one they wrap


class BatchSizeInUse(TrainerCallback):
    """Gives the state of a resumed run its own batch size, which Trainer leaves at that of the checkpoint."""

    def __init__(self, trainer: Host) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        state.train_batch_size = self.trainer._train_batch_size


def run_settings(trainer: Host) -> dict[str, Any]:
    """Networks, slots and training settings of `trainer`; precision and batch size as in effect on the accelerator.

    The settings of an optimizer or scheduler passed by the caller are read from these objects, not from the flags.
    """
    args, model = trainer.args, trainer.model
    assert model is not None
    networks = {"teacher": trainer.record.teacher, "student": trainer.record.student}
    training = _optimizer(trainer) | {name: getattr(args, name) for name in TRAINING} | _schedule(trainer)
    launched = {
        "mixed_precision": str(trainer.accelerator.mixed_precision),
        "weights": next(
            (str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()), None
        ),
        "world_size": args.world_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        **batch_sizes(args, trainer.state),
    }
    if isinstance(trainer.task, TeacherPromptLM):
        networks["teacher_prompts"] = "of its own"
    networks |= _seen_by(trainer.teacher)
    return networks | trainer.record.loss | training | launched | added_images(args, trainer.train_dataset)


def _seen_by(teacher: Teacher | None) -> dict[str, str]:
    """The size to which a teacher's images are resized, and how many of its classes are those of the data."""
    members = [one for one in (() if teacher is None else teacher.members) if isinstance(one, FrozenTeacher)]
    sizes = list(dict.fromkeys(f"{one.size[0]} x {one.size[1]}" for one in members if one.size))
    chosen = next((one.classes for one in members if one.classes), None)
    found = {"teacher_images": ", ".join(sizes)} if sizes else {}
    return found | ({"teacher_outputs": f"{len(chosen)} of its classes"} if chosen else {})


def compared_settings(trainer: Host) -> dict[str, Any]:
    """Further settings, besides `run_settings`, in which a resumed run is compared."""
    args, config = trainer.args, trainer.args.accelerator_config
    named = ("max_grad_norm", "neftune_noise_alpha", "segmentation_stride", "lr_scheduler_kwargs", *ADAM)
    kept = {name: getattr(args, name) for name in named}
    kept |= {name: getattr(config, name) for name in ("split_batches", "even_batches", "use_seedable_sampler")}
    return kept | {
        "collator": collator_in_words(trainer.data_collator),
        "dropout": dropout_of(trainer.model),
        "device": args.device.type,
        "versions": versions(),
        "hfkd": own_version(),
        "evaluation_rows": _evaluation_rows(trainer.eval_dataset),
    }


def versions() -> str:
    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def collator_in_words(collate: Any) -> str:
    """A collator's name and settings: its floats, flags, and the collators that it wraps."""
    if not hasattr(collate, "__dict__") or isinstance(collate, type) or hasattr(collate, "__code__"):
        return getattr(collate, "__qualname__", type(collate).__qualname__)
    settings = {name: value for name, value in vars(collate).items() if isinstance(value, (bool, float))}
    inner = {name: collator_in_words(value) for name, value in vars(collate).items() if name in WITHIN}
    words = ", ".join(f"{name}={value}" for name, value in (settings | inner).items() if not name.startswith("_"))
    return f"{type(collate).__qualname__}({words})"


def _evaluation_rows(dataset: Any) -> Any:
    if isinstance(dataset, dict) and not hasattr(dataset, "column_names"):
        return {name: data_hash(rows) for name, rows in dataset.items()}
    return data_hash(dataset)


def _optimizer(trainer: Host) -> dict[str, Any]:
    args, given = trainer.args, trainer.callers_optimizer
    if given is not None:
        first = {name: value for name, value in given.param_groups[0].items() if name != "params"}
        return _of_caller(type(given), first | {"lr": first.get("initial_lr", first["lr"])})
    if trainer.optimizer_cls_and_kwargs is not None:
        kind, keywords = trainer.optimizer_cls_and_kwargs
        return _of_caller(kind, {**keywords, "weight_decay": args.weight_decay})  # which Trainer sets for each group
    names = ("learning_rate", "optim", "optim_args", "weight_decay", *(ADAM if "adam" in args.optim else ()))
    return {name: getattr(args, name) for name in names}


def _of_caller(kind: type[torch.optim.Optimizer], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an optimizer passed by the caller, under the names of the flags."""
    more = {k: v for k, v in keywords.items() if k not in ("lr", "initial_lr", "weight_decay") and v}
    return {
        "learning_rate": keywords.get("lr"),
        "optim": f"{kind.__name__}, {CALLERS}",
        "optim_args": ", ".join(f"{name}={value}" for name, value in more.items()) or None,
        "weight_decay": keywords.get("weight_decay"),
    }


def _schedule(trainer: Host) -> dict[str, Any]:
    """The learning-rate schedule: steps after epochs, one of Trainer's schedules, or the caller's own."""
    args = trainer.args
    if trainer.callers_scheduler is not None:
        return {"lr_scheduler_type": f"{type(trainer.callers_scheduler).__name__}, {CALLERS}"}
    if args.lr_decay_epochs is not None:
        how: dict[str, Any] = {name: getattr(args, name) for name in ("lr_decay_epochs", "lr_decay_factor")}
    else:
        how = {"lr_scheduler_type": SchedulerType(args.lr_scheduler_type).value}
        how |= {"lr_scheduler_kwargs": args.lr_scheduler_kwargs} if args.lr_scheduler_kwargs else {}
    return how | {"warmup_steps": args.warmup_steps}
