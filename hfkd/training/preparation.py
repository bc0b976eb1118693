"""Prepares the arguments of DistillationTrainer before Trainer's constructor is called."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

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
from hfkd.training.checkpoints.student_weights import trained_adapters, trained_but_not_saved
from hfkd.training.trainer_arguments import refuse_loss_function
from hfkd.training.validation.normalisation import Received, warn_of_normalisation
from hfkd.utils.launch import check_world_size

logger = logging.getLogger(__name__)

MEASURED = ("loss", "kl", "accuracy", "top5_accuracy", "mean_iou")  # by each evaluation of a set


class EpochViews(TrainerCallback):
    """Sets the epoch of the training images' transform, if it is hfkd's."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        dataset = getattr(keywords["train_dataloader"], "dataset", None)  # a user's own may be any iterable
        transform = epoch_transform(dataset)
        if transform is not None and not isinstance(dataset, ImageStream):  # Trainer sets a stream's epoch itself
            transform.set_epoch(math.floor(round(state.epoch or 0.0, 6)))


def pins_memory(datasets: Mapping[str, Any], args: DistillationArguments) -> bool:
    """Whether a loader may pin its batches; moves the images of `ResidentImages` to the training device first, unless
    worker processes load them.

    Nothing is pinned for training on a CPU (torch warns of it), nor if images are on the device already.
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
    """Context in which attributes of `args`, or of a trainer, have these values; restored afterwards."""
    before = {name: getattr(args, name) for name in values}
    vars(args).update(values)
    try:
        yield
    finally:
        vars(args).update(before)


def chosen_loss(args: DistillationArguments, **given: Any) -> DistillationLoss:
    """The loss built from the slots and weights in `given`, or in `args` where they are None."""
    values = {name: getattr(args, name) if value is None else value for name, value in given.items()}
    chosen = values["temperature"] is not None
    values["temperature"] = values["temperature"] if chosen else args.slot_temperature
    loss = DistillationLoss(**values, label_smoothing=args.label_smoothing_factor)
    loss.temperature_chosen = chosen
    return loss


def suit_temperature(loss: DistillationLoss, task: Task) -> None:
    """Use temperature 1 for language models, unless a temperature was chosen."""
    if loss.kd_weight and task.vocabulary and not loss.temperature_chosen:
        loss.temperature = Constant(OF_LANGUAGE)
        logger.info(
            "No temperature was set: using temperature=%g, the default for language models (4 for images).", OF_LANGUAGE
        )


def refuse_keywords(keywords: Mapping[str, Any]) -> None:
    """Raise ValueError for keywords that have another name: old ones of Trainer, and those of other KD trainers."""
    if "tokenizer" in keywords:
        raise ValueError("tokenizer= is called processing_class= (as in Trainer of transformers 5)")
    if "teacher_model" in keywords:
        raise ValueError("teacher_model= is called teacher=")


def refuse_no_network(teacher: Any) -> None:
    """Raise ValueError for a teacher that is a function, or an exported program that has no eval mode."""
    for one in teacher if isinstance(teacher, (list, tuple)) else [teacher]:
        if one is None or (isinstance(one, Teacher) and not one.networks):
            continue
        if not isinstance(one, nn.Module):
            raise ValueError(
                f"the teacher is a {type(one).__name__}, not an nn.Module: wrap it in an nn.Module whose forward "
                "returns the logits"
            )
        freezing = Freezing([one])
        try:
            freezing.do()
        except NotImplementedError as error:
            raise ValueError(
                f"the teacher, a {type(one).__name__}, cannot be put into eval mode ({error}), which programs of "
                "torch.export do not support: pass the original network, or torch.jit.script of it"
            ) from error
        freezing.undo()


def refuse_unsupported(
    loss: DistillationLoss, student: nn.Module, teacher: Any, args: DistillationArguments, compute_loss_func: Any
) -> None:
    """Raise ValueError for combinations that would train something else than intended."""
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
        raise ValueError(
            "evaluate_kl=True compares the student with a teacher, but there is none: leave it out, or pass teacher="
        )
    refuse_loss_function(compute_loss_func)


def refuse_given_optimizers(args: DistillationArguments, optimizers: Any) -> None:
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


def refuse_metric_of_no_set(args: DistillationArguments, evaluated: Any) -> None:
    """Raise ValueError for a `metric_for_best_model` without the name of its set, of several evaluation sets.

    Trainer would end the run at its first evaluation. Metrics that a callback logs may have any name.
    """
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if isinstance(evaluated, dict) and metric in MEASURED and args.eval_strategy != IntervalStrategy.NO:
        raise ValueError(
            f"metric_for_best_model={args.metric_for_best_model!r} does not say of which evaluation set, of "
            f"{list(evaluated)}: name one, as in metric_for_best_model='{next(iter(evaluated), 'NAME')}_{metric}'"
        )


def check_optimizer(student: nn.Module, optimizers: Any) -> None:
    """Raise ValueError for the caller's optimizer if it has no parameter of the student; warn of others."""
    optimizer, _ = optimizers or (None, None)
    if optimizer is None:
        return
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trainable = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    lacking = [name for name, parameter in trainable.items() if id(parameter) not in known]
    if lacking and len(lacking) == len(trainable):
        raise ValueError(
            f"optimizers=({type(optimizer).__name__}, ...) has none of the student's trainable parameters, so that "
            "nothing would train: build it from the parameters of the network that is passed as the student (with "
            "peft_config these are adapters, which do not exist before: pass get_peft_model(student, peft_config))"
        )
    if lacking:
        logger.warning(
            "optimizers=(%s, ...) has %d of the student's %d trainable parameters; %s stay as they are.",
            type(optimizer).__name__,
            len(trainable) - len(lacking),
            len(trainable),
            some(lacking),
        )


def refuse_unsaved(student: nn.Module) -> None:
    """Raise ValueError for a student with adapters that trains parameters which its checkpoints would not contain."""
    lost = trained_but_not_saved(student)
    if lost:
        raise ValueError(
            f"{some(lost)} would change in training, but of a student with adapters only the adapters are saved: "
            "list these modules in modules_to_save of the PEFT configuration, or freeze them"
        )


def refuse_frozen(student: nn.Module) -> None:
    """Raise ValueError for a student, or adapters of a student, that would not train: these are loaded frozen."""
    adapters = trained_adapters(student)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        what = "no parameter of the student requires a gradient"
    elif adapters and not any(parameter.requires_grad for parameter in adapters):
        what = "the student's adapters are frozen, so that only its other parameters would train"
    else:
        return
    remedy = "call requires_grad_() on what is to be trained"
    if adapters:
        remedy = "load them by PeftModel.from_pretrained(base, folder, is_trainable=True), or merge them"
    raise ValueError(f"{what}: {remedy}")


def check_precision(student: nn.Module, args: DistillationArguments) -> None:
    """Warn of weights that would train in half precision; ValueError where that ends in an error at the first step."""
    half = {p.dtype for p in student.parameters() if p.requires_grad and p.is_floating_point() and p.itemsize == 2}
    if not half or args.deepspeed or uses_fsdp(args):  # which keep weights in float32
        return
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in half))
    remedy = "load it in float32 (dtype=torch.float32, as transformers loads weights as they are stored)"
    if args.fp16 and torch.float16 in half:
        raise ValueError(f"the student's weights are in {names}, and fp16=True trains weights in float32: {remedy}")
    logger.warning(
        "The student's weights are in %s, in which a step that changes a weight by less than about one part in %d is "
        "lost: %s; bf16=True still computes in bfloat16.",
        names,
        min(round(2 / torch.finfo(dtype).eps) for dtype in half),
        remedy,
    )


def refuse_unsavable(student: nn.Module) -> None:
    """Raise ValueError for what `save_pretrained` refuses, which otherwise ends the first save.

    Namely a generation_config, and adapters that transformers has put into its model, if it needs a newer PEFT.
    """
    if not isinstance(student, PreTrainedModel):
        return
    if student._hf_peft_config_loaded:
        try:
            student.active_adapters()
        except ValueError as error:
            raise ValueError(
                f"the student's adapters cannot be saved by transformers ({error}): load its base model, and the "
                "adapters by PeftModel.from_pretrained(base, folder, is_trainable=True)"
            ) from error
    if not student.can_generate():
        return
    try:
        with TemporaryDirectory() as folder:  # one that is as it was published may be saved, whatever it has
            student.generation_config.save_pretrained(folder)
    except ValueError as error:
        said = [line for line in str(error).splitlines() if line.startswith("- ")] or [str(error)]
        raise ValueError(
            f"the student's generation_config cannot be saved with it ({' '.join(said)}): change that, such as by "
            "student.generation_config.do_sample = True"
        ) from error


def refuse_prompts(student: nn.Module) -> None:
    """Raise ValueError for adapters that prepend virtual tokens: labels have no entries for these."""
    for config in getattr(student, "peft_config", {}).values():
        if config.is_prompt_learning and config.peft_type != "PREFIX_TUNING":
            raise ValueError(
                f"{config.peft_type.value} prepends virtual tokens to each row, so that the student's logits "
                "would be longer than the labels and the teacher's logits: use LoRA or prefix tuning"
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
    for name, off in (("he_da", "none"), ("teacher_cache_dir", None), ("evaluate_kl", False)):
        if (value := getattr(args, name)) not in (off, ""):
            raise ValueError(f"{name}={value!r} needs a fixed teacher, and Peers have none: leave it out")


def packing_check(
    networks: Sequence[nn.Module],
    args: TrainingArguments,
    loss: DistillationLoss,
    datasets: Mapping[str, Any],
    collate: Any,
) -> PackingCheck:
    """A check that refuses packed rows if a network attends across documents; applied to `datasets` now.

    Also raises ValueError for packed training rows if a term of the loss compares whole rows.
    """
    for term in loss.terms if loss.kd_weight else ():
        if term.by_sample and term.reads_features:
            refuse_packed(term.objective, datasets["train_dataset"], collate)
    check = PackingCheck(networks, sharded=uses_fsdp(args) or bool(args.deepspeed))
    check.check_datasets(datasets, collate)
    return check


def uses_fsdp(args: TrainingArguments) -> bool:
    """Whether the student will be sharded: by `--fsdp`, or by the configuration of `accelerate launch`."""
    return bool(args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")


def with_adapters(model: nn.Module, peft_config: Any) -> nn.Module:
    """The student with PEFT adapters; only these will train."""
    from peft import get_peft_model  # optional dependency

    return get_peft_model(model, peft_config)


def teacher_networks(teacher: Any) -> list[nn.Module]:
    """The networks in `teacher=`: one, several, or none."""
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
    """The task's collator, or the user's; batches keep what the student or a teacher takes.

    `call`: the student's, for these rows. For example, a BERT that teaches a DistilBERT gets the `token_type_ids` of
    sentence pairs, which the student does not take.
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
    """Wrap `teacher=`, with the normalisation of the training images unless it already has one.

    A list of teachers becomes a `TeacherEnsemble`. The caller's networks are frozen only while they are used. Warns if
    the normalisation is known from the student's config only and differs from the teacher's.
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


def cached_teacher(
    teacher: Any, dataset: Any, loss: DistillationLoss, args: DistillationArguments, accelerator: Accelerator
) -> CachedTeacher | None:
    """The cached teacher for the training images with `teacher_cache_dir`, else None. ValueError if unsuitable."""
    if not args.teacher_cache_dir or teacher is None or not teacher.networks or not loss.kd_weight:
        return None
    return CachedTeacher(teacher, dataset, args.teacher_cache_dir, accelerator, args.teacher_cache_on_device)
