"""What DistillationTrainer makes of its arguments before it is a Trainer."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from hfkd.arguments import DistillationArguments
from hfkd.data.collate import ImageCollator
from hfkd.data.epochs import ImageStream, epoch_transform
from hfkd.data.resident import ResidentImages
from hfkd.data.used_columns import only_used
from hfkd.losses.base import requirements_of
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.temperatures import OF_LANGUAGE, Constant
from hfkd.models import Peers
from hfkd.models.calling import Call
from hfkd.models.checkpoints import some
from hfkd.models.inputs import image_channels
from hfkd.models.peers import networks_of
from hfkd.tasks.base import Collate, Task
from hfkd.tasks.packing import PackingCheck, refuse_packed
from hfkd.teachers import CachedTeacher, FrozenTeacher, Teacher, TeacherEnsemble
from hfkd.teachers.freezing import Freezing
from hfkd.training.checkpoints.student_weights import trained_but_not_saved
from hfkd.training.trainer_arguments import refuse_loss_function
from hfkd.training.validation.normalisation import Received, warn_of_normalisation
from hfkd.utils.launch import check_world_size

logger = logging.getLogger(__name__)


class EpochViews(TrainerCallback):
    """Tells the training images' transform, if it is ours, which epoch's views to make."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        dataset = getattr(keywords["train_dataloader"], "dataset", None)  # a user's own may be any iterable
        transform = epoch_transform(dataset)
        if transform is not None and not isinstance(dataset, ImageStream):  # Trainer tells a stream its pass itself
            transform.set_epoch(math.floor(round(state.epoch or 0.0, 6)))


def pins_memory(datasets: Mapping[str, Any], args: DistillationArguments) -> bool:
    """Whether a loader may pin its batches; the images of `ResidentImages` are held where they are trained on first.

    Unless worker processes fetch them. A CPU pins nothing (torch warns of it), nor may what is on the device already.
    """
    if args.device.type == "cpu":
        return False
    parts = [part for given in datasets.values() for part in (given.values() if isinstance(given, dict) else [given])]
    resident = [part for part in parts if isinstance(part, ResidentImages) and not args.dataloader_num_workers]
    for part in resident:
        part.move(args.device)
    return not resident


@contextmanager
def setting(args: Any, **values: Any) -> Iterator[None]:
    """Within it `args`, which are the caller's, or a trainer, have these values; afterwards their own."""
    before = {name: getattr(args, name) for name in values}
    vars(args).update(values)
    try:
        yield
    finally:
        vars(args).update(before)


def chosen_loss(args: DistillationArguments, **given: Any) -> DistillationLoss:
    """The loss of the slots and weights that are `given`, and of `args` where they are None."""
    values = {name: getattr(args, name) if value is None else value for name, value in given.items()}
    chosen = values["temperature"] is not None
    values["temperature"] = values["temperature"] if chosen else args.slot_temperature
    loss = DistillationLoss(**values, label_smoothing=args.label_smoothing_factor)
    loss.temperature_chosen = chosen
    return loss


def suit_temperature(loss: DistillationLoss, task: Task) -> None:
    """Where nobody chose a temperature, language models learn the teacher's distribution as it is."""
    if loss.kd_weight and task.vocabulary and not loss.temperature_chosen:
        loss.temperature = Constant(OF_LANGUAGE)
        logger.info("temperature=%g, as no other was given: usual for language models (4 for images).", OF_LANGUAGE)


def refuse_keywords(keywords: Mapping[str, Any]) -> None:
    """Raise ValueError for keywords that have another name: Trainer's by now, and other trainers' with a teacher."""
    if "tokenizer" in keywords:
        raise ValueError("tokenizer= is called processing_class= (as in Trainer of transformers 5)")
    if "teacher_model" in keywords:
        raise ValueError("teacher_model= is called teacher=")


def refuse_no_network(teacher: Any) -> None:
    """Raise ValueError for a teacher that is a function, or exported so that it has no modes."""
    for one in teacher if isinstance(teacher, (list, tuple)) else [teacher]:
        if one is None or (isinstance(one, Teacher) and not one.networks):
            continue
        if not isinstance(one, nn.Module):
            raise ValueError(
                f"the teacher is a {type(one).__name__}, and no network: wrap what it computes in an nn.Module whose "
                "forward gives the logits"
            )
        freezing = Freezing([one])
        try:
            freezing.do()
        except NotImplementedError as error:
            raise ValueError(
                f"the teacher, a {type(one).__name__}, cannot be put into eval mode ({error}), as programs of "
                "torch.export cannot: pass the network that was exported, or torch.jit.script of it"
            ) from error
        freezing.undo()


def refuse_unsupported(
    loss: DistillationLoss, student: nn.Module, teacher: Any, args: DistillationArguments, compute_loss_func: Any
) -> None:
    """Raise ValueError for what would train something else than the caller thinks."""
    check_world_size(args.world_size)
    refuse_no_network(teacher)
    if isinstance(student, Peers):
        _refuse_for_peers(loss, teacher, args)
    elif teacher is None and loss.kd_weight:
        raise ValueError(
            f"kd_weight={loss.kd_weight} needs a teacher: pass teacher=, or kd_weight=0 and ce_weight=1 to train on "
            "the labels alone"
        )
    elif teacher is None and args.evaluate_kl:
        raise ValueError("evaluate_kl=True compares the student with a teacher, and there is none: leave it out")
    refuse_loss_function(compute_loss_func)


def refuse_given_optimizers(args: DistillationArguments, optimizers: Any) -> None:
    """Raise ValueError for settings of an optimizer and a schedule where the caller's own are used."""
    optimizer, scheduler = optimizers or (None, None)
    if scheduler is not None and args.lr_decay_epochs is not None:
        raise ValueError(
            f"lr_decay_epochs={args.lr_decay_epochs} has no effect on optimizers=(..., {type(scheduler).__name__}), "
            "which is the schedule then: leave one of them out, as in optimizers=(optimizer, None)"
        )
    if optimizer is not None and args.decay_bias_and_norm:
        raise ValueError(
            f"decay_bias_and_norm=True has no effect on optimizers=({type(optimizer).__name__}, ...), whose groups say "
            "what decays: leave one of them out"
        )


def refuse_unsaved(student: nn.Module) -> None:
    """Raise ValueError for a student with adapters that trains more than its checkpoints would hold."""
    lost = trained_but_not_saved(student)
    if lost:
        raise ValueError(
            f"{some(lost)} would change in training, and a student with adapters is saved by its adapters alone: name "
            "these modules in the PEFT configuration's modules_to_save, or freeze them"
        )


def refuse_prompts(student: nn.Module) -> None:
    """Raise ValueError for adapters that put tokens of their own before the text: no label stands in their places."""
    for config in getattr(student, "peft_config", {}).values():
        if config.is_prompt_learning and config.peft_type != "PREFIX_TUNING":
            raise ValueError(
                f"{config.peft_type.value} puts tokens of its own before each row, and the student's logits are then "
                "longer than the labels and the teacher's: use LoRA or prefix tuning"
            )


def refuse_peers_of(student: nn.Module, task: Task) -> None:
    """Raise ValueError for Peers that classify anything but images."""
    if isinstance(student, Peers) and not task.views:
        raise ValueError(f"Peers are views of an image with one label, and the task is {task.name}: give one student")


def _refuse_for_peers(loss: DistillationLoss, teacher: Any, args: DistillationArguments) -> None:
    """Raise ValueError for what takes a fixed teacher, or peers of unequal rank."""
    if teacher is not None:
        raise ValueError("Peers are each other's teachers: leave the teacher out")
    if loss.unfitted is not None:
        raise ValueError(
            f"{loss.unfitted!r} needs a fixed teacher to scan: give it thresholds, or distil without Peers"
        )
    if requirements_of(loss.objective).first_view:
        raise ValueError(
            f"{loss.objective!r} treats the first view of an image apart, and would take the first of the Peers for "
            "it: choose another objective, such as average"
        )
    for name, off in (("he_da", "none"), ("teacher_cache_dir", None), ("evaluate_kl", False)):
        if (value := getattr(args, name)) not in (off, ""):
            raise ValueError(f"{name}={value!r} asks a fixed teacher, and Peers have none: leave it out")


def packing_check(
    networks: Sequence[nn.Module],
    args: TrainingArguments,
    loss: DistillationLoss,
    datasets: Mapping[str, Any],
    collate: Any,
) -> PackingCheck:
    """What refuses packed rows where one of the networks lets documents see each other: those of `datasets` now.

    Raises ValueError for packed rows to train on, too, where a term of the loss compares whole rows.
    """
    for term in loss.terms if loss.kd_weight else ():
        if term.by_sample and term.reads_features:
            refuse_packed(term.objective, datasets["train_dataset"], collate)
    check = PackingCheck(networks, sharded=uses_fsdp(args) or bool(args.deepspeed))
    check.check_datasets(datasets, collate)
    return check


def uses_fsdp(args: TrainingArguments) -> bool:
    """Whether the student will be sharded: by `--fsdp`, or by the file given to `accelerate launch`."""
    return bool(args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")


def with_adapters(model: nn.Module, peft_config: Any) -> nn.Module:
    """The student with PEFT adapters, which alone will train."""
    from peft import get_peft_model  # needed by those who ask for it only

    return get_peft_model(model, peft_config)


def teacher_networks(teacher: Any) -> list[nn.Module]:
    """The networks that `teacher=` names: one, several, or none."""
    several = teacher if isinstance(teacher, (list, tuple)) else [teacher]
    found = [one.networks if isinstance(one, Teacher) else (one,) for one in several if isinstance(one, nn.Module)]
    return [network for networks in found for network in networks]


def chosen_collator(
    given: Any,
    processing_class: Any,
    call: Call,
    student: nn.Module,
    teacher: Any,
    task: Task,
    args: DistillationArguments,
) -> Collate:
    """The task's collator, or the user's; either gets what one of the networks takes, and not the student alone.

    `call`: the student's, for these rows. A BERT that teaches a DistilBERT reads the `token_type_ids` that tell two
    sentences apart.
    """
    calls = [Call.of(network) for network in (*networks_of(student), *teacher_networks(teacher))]
    names = args.label_names or ()
    if given is None:
        wanted = {name for one in calls for name in one.keywords or ()} | {*names}
        collate = task.collator(call, processing_class, wanted)
        if isinstance(collate, ImageCollator):
            collate.channels = image_channels(networks_of(student)[0])
        return collate
    takes, always = [call.takes for call in calls], bool(args.remove_unused_columns)
    return task.ready(only_used(given, takes, ("view", *names), always))


def as_teacher(given: Any, inputs: Received) -> Teacher:
    """What `teacher=` names, told how the training images are normalised, unless it is told already.

    A list of teachers becomes `TeacherEnsemble`. Networks are the caller's, and frozen while they are used. Warns where
    nobody but the student's config says it, and says something else than the teacher.
    """
    if isinstance(given, Teacher) and not given.members:  # stored
        return given
    listed = isinstance(given, (list, tuple))
    live = [
        _frozen(one, inputs) for one in (given if listed else given.members if isinstance(given, Teacher) else [given])
    ]
    return TeacherEnsemble(live).unfreeze() if listed or len(live) > 1 else live[0]


def _frozen(teacher: Any, inputs: Received) -> FrozenTeacher:
    if isinstance(teacher, FrozenTeacher):
        _refuse_own_order(teacher)
    if isinstance(teacher, FrozenTeacher) and teacher.received is not None:
        return teacher
    if isinstance(teacher, FrozenTeacher):
        live = FrozenTeacher(teacher.model, inputs.spec, teacher.wanted, teacher.label_names, teacher.classes)
    else:
        live = FrozenTeacher(teacher, inputs.spec)
    if not inputs.certain:
        warn_of_normalisation(inputs.spec, live.wanted)
    return live.unfreeze()


def _refuse_own_order(teacher: FrozenTeacher) -> None:
    """Raise ValueError for an order of classes that the caller has set, and that would be lost."""
    order = None if teacher.order is None else teacher.order.tolist()
    if order is not None and not teacher.aligned and order != list(teacher.classes or ()):
        raise ValueError(
            f"the teacher's classes were put into another order by reorder ({order[:4]}, ...), which a trainer says "
            "anew for its data: give the order as FrozenTeacher(teacher, classes=[...]), or the classes' names as "
            "label_names"
        )


def refuse_teacher_cache(
    args: DistillationArguments, loss: DistillationLoss, task: Task, teachers: Sequence[nn.Module]
) -> None:
    """Raise ValueError for a `teacher_cache_dir` that is not filled while training."""
    if not args.teacher_cache_dir or not teachers or not loss.kd_weight:
        return
    if task.vocabulary:
        raise ValueError(
            "teacher_cache_dir of a language model is filled before training: call hfkd.teachers.build_text_cache, and "
            "pass CachedTextTeacher(folder) as the teacher (recipes/gpt2_dolly_eakd.py does both)"
        )
    if len(teachers) > 1:
        raise ValueError("teacher_cache_dir keeps the logits of one teacher, and there are several: leave it out")


def cached_teacher(
    teacher: Any, dataset: Any, loss: DistillationLoss, args: DistillationArguments, accelerator: Accelerator
) -> CachedTeacher | None:
    """The teacher for the training images with `teacher_cache_dir`, else None. ValueError where it cannot serve."""
    if not args.teacher_cache_dir or teacher is None or not teacher.networks or not loss.kd_weight:
        return None
    return CachedTeacher(teacher, dataset, args.teacher_cache_dir, accelerator, args.teacher_cache_on_device)
