"""Refuses arguments of the trainer that do not go together."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import IntervalStrategy

from hfkd.arguments import DistillationArguments
from hfkd.losses.base import requirements_of
from hfkd.losses.distillation import DistillationLoss
from hfkd.models import Peers
from hfkd.tasks.base import Task
from hfkd.teachers import Teacher
from hfkd.training.given_teacher import teacher_networks
from hfkd.training.overridden_loss import refuse_loss_function
from hfkd.training.trainer_arguments import WEIGHTS_ELSEWHERE
from hfkd.utils.launch import check_world_size, uses_fsdp
from hfkd.utils.messages import did_you_mean
from hfkd.utils.metric_names import is_divergence

RENAMED = {
    "tokenizer": "processing_class= (as in Trainer of transformers 5)",
    "teacher_model": "teacher=",
    "student_model": "model=",
}
MEASURED = ("loss", "kl", "accuracy", "top5_accuracy", "mean_iou")  # by each evaluation of a set


def refuse_keywords(keywords: Mapping[str, Any]) -> None:
    """Raise ValueError for keywords that have another name: old ones of Trainer, and those of other KD trainers.

    TypeError for any other that Trainer does not take, before networks are run.
    """
    for name, called in RENAMED.items():
        if name in keywords:
            raise ValueError(f"{name}= is called {called}")
    if weight := next((name for name in WEIGHTS_ELSEWHERE if name in keywords), None):
        raise ValueError(
            f"{weight}= is no argument of DistillationTrainer: pass ce_weight=, the weight of the cross-entropy on the "
            "labels, and kd_weight=, that of the distillation loss"
        )
    known = inspect.signature(Trainer.__init__).parameters
    if unknown := sorted(keywords.keys() - known.keys()):
        raise TypeError(f"DistillationTrainer has no argument {unknown[0]!r}{did_you_mean(unknown[0], known)}")


def _refuse_no_network(teacher: Any) -> None:
    """Raise ValueError for a teacher that is a function."""
    for one in teacher if isinstance(teacher, (list, tuple)) else [teacher]:
        stored = isinstance(one, Teacher) and not one.networks
        if not (one is None or stored or isinstance(one, nn.Module)):
            raise ValueError(
                f"the teacher is a {type(one).__name__}, not an nn.Module: wrap it in an nn.Module whose forward "
                "returns the logits"
            )


def refuse_unsupported(
    loss: DistillationLoss, student: nn.Module, teacher: Any, args: DistillationArguments, keywords: Mapping[str, Any]
) -> None:
    """Raise ValueError for combinations that would train something else than intended. keywords: Trainer's."""
    check_world_size(args.world_size)
    _refuse_no_network(teacher)
    if isinstance(student, Peers):
        _refuse_for_peers(loss, teacher, args)
    elif teacher is None and loss.kd_weight:
        raise ValueError(
            f"kd_weight={loss.kd_weight} needs a teacher: pass teacher=, or kd_weight=0 and ce_weight=1 to train on "
            "the labels alone"
        )
    elif teacher is None and args.evaluate_kl:
        raise ValueError(
            "evaluate_kl=True compares the student with a teacher, but there is none: set it to false, or pass teacher="
        )
    if args.shard_teacher:
        _refuse_unsharded(args, teacher)
    refuse_loss_function(keywords.get("compute_loss_func"))
    _refuse_given_optimizers(args, keywords.get("optimizers"))
    _refuse_metric_of_no_set(args, keywords.get("eval_dataset"))
    _refuse_unmeasured_divergence(args, keywords)


def _refuse_unsharded(args: DistillationArguments, teacher: Any) -> None:
    """Raise ValueError for `shard_teacher` without FSDP, or without a live teacher."""
    if not uses_fsdp(args):
        raise ValueError(
            "shard_teacher=True needs FSDP 2, which this run does not use: launch with "
            "accelerate_configs/fsdp.yaml on several GPUs, or leave shard_teacher out"
        )
    if not teacher_networks(teacher):
        what = "there is no teacher" if teacher is None else f"{type(teacher).__name__} does not run a network"
        raise ValueError(f"shard_teacher=True has nothing to shard: {what}; leave shard_teacher out")


def _refuse_given_optimizers(args: DistillationArguments, optimizers: Any) -> None:
    """Raise ValueError for settings of optimizer or schedule that have no effect on those passed as `optimizers`."""
    optimizer, scheduler = optimizers or (None, None)
    if scheduler is not None and args.lr_decay_epochs is not None:
        raise ValueError(
            f"lr_decay_epochs={args.lr_decay_epochs} has no effect on optimizers=(..., {type(scheduler).__name__}), "
            "which sets the schedule: leave one of them out, as in optimizers=(optimizer, None)"
        )
    if optimizer is not None and args.decay_bias_and_norm:
        raise ValueError(
            f"decay_bias_and_norm=True has no effect on optimizers=({type(optimizer).__name__}, ...), whose "
            "parameter groups set the weight decay: leave one of them out"
        )


def _refuse_metric_of_no_set(args: DistillationArguments, evaluated: Any) -> None:
    """Raise ValueError for a `metric_for_best_model` without the name of its set, of several evaluation sets.

    Trainer would end the run at its first evaluation. Metrics that a callback logs may have any name.
    """
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if isinstance(evaluated, dict) and metric in MEASURED and args.eval_strategy != IntervalStrategy.NO:
        raise ValueError(
            f"metric_for_best_model={args.metric_for_best_model!r} does not say of which evaluation set, of "
            f"{list(evaluated)}: name one, as in metric_for_best_model='{next(iter(evaluated), 'NAME')}_{metric}'"
        )


def _refuse_unmeasured_divergence(args: DistillationArguments, keywords: Mapping[str, Any]) -> None:
    """Raise ValueError for eval_kl as `metric_for_best_model` where it is not measured. keywords: Trainer's.

    Trainer would end the run at its first evaluation. A `compute_metrics` of the caller's may give one of that name.
    """
    metric, given = args.metric_for_best_model or "", keywords.get("compute_metrics")
    theirs = given is not None and not str(getattr(given, "__module__", "")).startswith("hfkd.")
    if is_divergence(metric) and not (args.evaluate_kl or theirs) and args.eval_strategy != IntervalStrategy.NO:
        raise ValueError(
            f"metric_for_best_model={metric!r} is measured only with evaluate_kl=True: set that too, or choose another "
            "metric"
        )


def refuse_peers_of(student: nn.Module, task: Task) -> None:
    """Raise ValueError for Peers that classify anything but images."""
    if isinstance(student, Peers) and not task.views:
        raise ValueError(f"Peers work for image classification only, and the task is {task.name}: pass one student")


def _refuse_for_peers(loss: DistillationLoss, teacher: Any, args: DistillationArguments) -> None:
    """Raise ValueError for settings that need a fixed teacher, or treat one of the peers differently."""
    if teacher is not None:
        raise ValueError("Peers are each other's teachers: leave the teacher out")
    if loss.unfitted is not None:
        raise ValueError(
            f"{loss.unfitted!r} needs a scan by a fixed teacher, and Peers have none: pass thresholds, or distil "
            "without Peers"
        )
    if requirements_of(loss.objective).first_view:
        raise ValueError(
            f"{loss.objective!r} treats the first view of an image separately, and would mistake the first of the "
            "Peers for it: choose another objective, such as average"
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"DataParallel joins the logits of its {args.n_gpu} GPUs one after the other, and Peers return theirs peer "
            "by peer, so that rows would get each other's labels: launch one process per GPU, for example with torchrun"
        )
    for name, off in (("he_da", "none"), ("teacher_cache_dir", None), ("evaluate_kl", False)):
        if (value := getattr(args, name)) not in (off, ""):
            raise ValueError(f"{name}={value!r} needs a fixed teacher, and Peers have none: leave it out")


def refuse_teacher_cache(
    args: DistillationArguments, loss: DistillationLoss, task: Task, teachers: Sequence[nn.Module]
) -> None:
    """Raise ValueError for a `teacher_cache_dir` that training cannot fill."""
    if not args.teacher_cache_dir or not teachers or not loss.kd_weight:
        return
    if task.vocabulary:
        raise ValueError(
            "teacher_cache_dir is filled before training for language models: call hfkd.teachers.build_text_cache, and "
            "pass CachedTextTeacher(folder) as the teacher (recipes/gpt2_dolly_eakd.py does both)"
        )
    if len(teachers) > 1:
        raise ValueError("teacher_cache_dir stores the logits of one teacher, but there are several: leave it out")
