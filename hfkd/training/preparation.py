"""Prepares the arguments of DistillationTrainer before Trainer's constructor is called."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_utils import has_length

from hfkd.arguments import DistillationArguments
from hfkd.data.collate import ImageCollator, with_wrapped
from hfkd.data.epochs import set_epoch_of
from hfkd.data.first_rows import sets_by_name
from hfkd.data.resident import ResidentImages, takes_batches
from hfkd.data.used_columns import only_used
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.temperatures import OF_LANGUAGE, Constant
from hfkd.models.calling import Call
from hfkd.models.inputs import image_channels
from hfkd.models.peers import networks_of
from hfkd.tasks.base import Collate, Task
from hfkd.tasks.packing import PackingCheck, refuse_packed
from hfkd.teachers import CachedTeacher, FrozenTeacher, Teacher, TeacherEnsemble
from hfkd.training.validation.normalisation import Received, warn_of_normalisation

logger = logging.getLogger(__name__)


class EpochViews(TrainerCallback):
    """Sets the epoch of hfkd's transforms of the training set; `Passes` does so where its length is unknown."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        loader = keywords["train_dataloader"]
        if not has_length(loader):  # Trainer counts shares of max_steps there
            return
        dataset = getattr(loader, "dataset", None)  # a user's own may be any iterable
        set_epoch_of(dataset, math.floor(round(state.epoch or 0.0, 6)))


def pins_memory(datasets: Mapping[str, Any], args: DistillationArguments, collate: Any) -> bool:
    """Whether a loader may pin its batches; moves the images of `ResidentImages` to the training device first, unless
    worker processes load them or a user's `collate` gets them one by one.

    Nothing is pinned for training on a CPU or on Apple's GPUs (torch warns of it), nor if images are on the device
    already.
    """
    if args.device.type == "cpu":
        return False
    parts = [part for given in datasets.values() for part in sets_by_name(given).values()]
    here = not args.dataloader_num_workers and takes_batches(collate)
    resident = [part for part in parts if isinstance(part, ResidentImages) and here]
    for part in resident:
        part.move(args.device)
    return not resident and args.device.type != "mps"


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


def tokenizer_in(collate: Any) -> Any:
    """The `tokenizer` of a collator, which may be wrapped (`chosen_collator`); None without one that can be saved."""
    found = (getattr(one, "tokenizer", None) for one in with_wrapped(collate))
    return next((one for one in found if callable(getattr(one, "save_pretrained", None))), None)


def tokenizer_of_rows(processing_class: Any, collate: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer that the rows are in: the `processing_class`, that of a processor, or that of the collator."""
    given = (processing_class, getattr(processing_class, "tokenizer", None), tokenizer_in(collate))
    return next((one for one in given if isinstance(one, PreTrainedTokenizerBase)), None)


def as_teacher(given: Any, inputs: Received) -> Teacher:
    """Wrap `teacher=`, with the normalisation of the training images unless it already has one.

    A list of teachers becomes a `TeacherEnsemble`. The caller's networks are frozen only while they are used. Warns if
    the normalisation is known from the student's config only and differs from the teacher's.
    """
    if isinstance(given, Teacher) and not given.members:  # stored
        return given
    listed = isinstance(given, (list, tuple))
    members = given if listed else given.members if isinstance(given, Teacher) else [given]
    several = listed or len(members) > 1
    if several:
        _refuse_own_combination(given, *members)
    live = [_frozen(one, inputs) for one in members]
    return TeacherEnsemble(live).unfreeze() if several else live[0]


def _refuse_own_combination(*teachers: Any) -> None:
    """Raise ValueError for subclasses in an ensemble, which combines its networks' logits and would not call them."""
    for one in teachers:
        if isinstance(one, FrozenTeacher) and type(one) not in (FrozenTeacher, TeacherEnsemble):
            raise ValueError(
                f"several teachers are combined by hfkd, and what {type(one).__name__} computes itself would have no "
                "effect: pass one nn.Module that runs the networks (a FrozenTeacher each, where their inputs are "
                "normalised differently) and returns the combined logits"
            )


def _frozen(teacher: Any, inputs: Received) -> FrozenTeacher:
    if isinstance(teacher, FrozenTeacher):
        _refuse_own_order(teacher)
    if isinstance(teacher, FrozenTeacher) and teacher.received is not None:
        return teacher.for_batches(teacher.received)
    own = isinstance(teacher, FrozenTeacher)
    live = teacher.for_batches(inputs.spec) if own else FrozenTeacher(teacher, inputs.spec).unfreeze()
    if not inputs.certain:
        warn_of_normalisation(inputs.spec, live.wanted)
    return live


def _refuse_own_order(teacher: FrozenTeacher) -> None:
    """Raise ValueError for an order of classes that the caller has set, and that would be lost."""
    order = None if teacher.order is None else teacher.order.tolist()
    if order is not None and not teacher.aligned and order != list(teacher.classes or ()):
        raise ValueError(
            f"the teacher's classes were put into another order by reorder ({order[:4]}, ...), which a trainer says "
            "anew for its data: give the order as FrozenTeacher(teacher, classes=[...]), or the classes' names as "
            "label_names"
        )


def cached_teacher(
    teacher: Any, dataset: Any, loss: DistillationLoss, args: DistillationArguments, accelerator: Accelerator
) -> CachedTeacher | None:
    """The cached teacher for the training images with `teacher_cache_dir`, else None. ValueError if unsuitable."""
    if not args.teacher_cache_dir or teacher is None or not teacher.networks or not loss.kd_weight:
        return None
    return CachedTeacher(teacher, dataset, args.teacher_cache_dir, accelerator, args.teacher_cache_on_device)
