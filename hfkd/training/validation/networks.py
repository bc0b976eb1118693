"""Runs both networks on the first rows, before anything is written."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from hfkd.data.collate import views_as_rows
from hfkd.data.first_rows import first_rows, map_style
from hfkd.data.labels import class_ids
from hfkd.data.teacher_columns import TEACHER_LENGTH
from hfkd.models.calling import Call, class_dim, logits_of
from hfkd.models.inputs import IMAGE_DIMS, image_channels
from hfkd.models.peers import networks_of
from hfkd.models.vocabulary import vocabulary_size
from hfkd.tasks.base import Task
from hfkd.tasks.proof import compare_own_loss, untouched
from hfkd.teachers import FrozenTeacher
from hfkd.teachers.ensemble import Unlike
from hfkd.training.validation.checked_batches import NOTHING_TO_LEARN
from hfkd.training.validation.datasets import Collate
from hfkd.training.validation.given_inputs import refuse_missing_inputs, refuse_unread_inputs
from hfkd.training.validation.label_values import check_label_values, check_scored, refuse_no_labels
from hfkd.training.validation.own_task import check_own_task
from hfkd.training.validation.padding import refuse_left_padding
from hfkd.training.validation.probabilities import refuse_probabilities
from hfkd.training.validation.random_outputs import warn_if_random
from hfkd.training.validation.slots import SlotCheck
from hfkd.training.validation.tokens import check_positions, check_target_length, check_tokens
from hfkd.utils.devices import device_of
from hfkd.utils.finite import broken_rows

logger = logging.getLogger(__name__)

IMAGES = "pixel_values"
OF_SOUNDS = {
    "teacher": "choose a teacher that takes the features of the student's feature extractor (with as many mel bins), "
    "or wrap it in an nn.Module that makes its own features of them",
    "student": "make them with the student's own feature extractor",
}
# What to do about inputs that a network cannot process, by their names.
REMEDIES = {
    IMAGES: {
        "teacher": "pass the size and normalisation that it expects, FrozenTeacher(teacher, wanted=InputSpec(mean, "
        "std, (height, width))), and its images are converted",
        "student": "resize them in the dataset's transform, or build the student for them (with timm, in_chans= and, "
        "for networks of a fixed size, img_size=)",
    },
    "input_features": OF_SOUNDS,
    "input_values": OF_SOUNDS,
}
HALF = (torch.float16, torch.bfloat16)
IN_FLOAT32 = "load it in float32 (dtype=torch.float32), as evaluations run without autocast; bf16=True trains with it"


def check_networks(
    student: nn.Module,
    call: Call,
    teacher: FrozenTeacher | None,
    dataset: Any,
    collate: Collate,
    task: Task,
    check_slots: SlotCheck | None = None,
    labels: Sequence[str] = (),
    scored: Any = None,
    no_label: str | None = NOTHING_TO_LEARN,
) -> int | None:
    """`check_batch` of the first rows of `dataset`; the labels of the evaluation sets in `scored` are checked too.
    no_label: see `CheckedCollator`.

    Returns the number of classes; None for a stream, whose rows can be read only once: `check_batch` checks its first
    batch later.
    """
    networks = (student, *(teacher.networks if teacher else ()))
    if not map_style(dataset):
        for network in networks if task.by_target else ():
            compare_own_loss(network, None, task)
        return None
    rows = first_rows(dataset)
    batch = batch_of(rows, collate, call, task, labels)
    classes = check_batch(student, call, teacher, batch, task, check_slots, rows, dataset, no_label)
    check_scored(scored, collate, classes, task)
    return classes


@torch.no_grad()
def check_batch(
    student: nn.Module,
    call: Call,
    teacher: FrozenTeacher | None,
    batch: dict[str, Any],
    task: Task,
    check_slots: SlotCheck | None = None,
    rows: Sequence[Any] = (),
    dataset: Any = None,
    no_label: str | None = NOTHING_TO_LEARN,
) -> int:
    """Run both networks on a batch. ValueError unless classes are the same, the teacher is finite and labels are in
    range. `check_slots` is called with the batch and both networks' logits, and may raise too.

    rows, dataset: the rows of the batch and their dataset, if any. Returns the number of classes.
    """
    networks = (student, *(teacher.networks if teacher else ()))
    refuse_no_labels(batch, task)
    refuse_unread_inputs(student, networks[1:], rows, batch, task)
    for network in networks if "input_ids" in batch else ():
        read = batch if network is student else task.for_teacher(batch)
        check_positions(network, dataset, "length" if read is batch else TEACHER_LENGTH)
        check_tokens(network, read)
        if task.by_target:
            refuse_left_padding(network, read)
    for network in networks if task.labels_to_networks else ():
        check_target_length(network, batch)
    task.check_rows(rows, batch)
    task.look_at_labels(student, batch)
    batch = task.probe(batch)
    refuse_missing_inputs("student", student, batch)
    with untouched(student), naming_inputs("student", student, batch):
        run = partial(call.output, student, on_device_of(student, batch))
        # A detector draws its proposals.
        output = run() if task.follows_student else warn_if_random("student", student, run)
    logits = logits_of(output)
    call.added_loss(output)  # raises if its weight in the loss is unknown
    task.check_logits(logits)
    classes = logits.shape[class_dim(logits)]
    if task.class_ids:
        refuse_probabilities("student", logits)
    check_label_values(dataset, batch, classes, task, no_label)
    batch["labels"] = class_ids(batch["labels"])
    several = networks_of(student)
    compared = _of_each_view(batch, len(logits) // len(several)) if task.views else batch
    for network in several:
        compare_own_loss(network, on_device_of(network, compared), task, is_student=True)
    batch = dict(task.after_student(batch, output))
    taught = logits
    if teacher is not None:
        for networks, probe in teacher.probes(batch):
            taught = _check_teacher(student, teacher, networks, probe, classes, task)
            if check_slots is not None:
                check_slots(probe, logits, taught)
    check_own_task(task, batch, logits, taught)
    return classes


def _of_each_view(batch: dict[str, Any], rows: int) -> dict[str, Any]:
    """The batch with a label for each view of an image, as the network takes it; rows: those of its logits."""
    labels = batch["labels"]
    views = rows // max(len(labels), 1)
    return batch | {"labels": labels.repeat(views, *[1] * (labels.ndim - 1))} if views > 1 else batch


def batch_of(rows: list[Any], collate: Collate, call: Call, task: Task, labels: Sequence[str] = ()) -> dict[str, Any]:
    """A batch of `rows`, as it is passed to the networks."""
    return as_networks_get(collate(rows), call, task, labels)


def as_networks_get(batch: Mapping[str, Any], call: Call, task: Task, labels: Sequence[str] = ()) -> dict[str, Any]:
    batch = call.without_labels(batch, labels)
    return views_as_rows(batch) if task.views else dict(batch)


def _check_teacher(
    student: nn.Module,
    teacher: FrozenTeacher,
    networks: Sequence[nn.Module],
    batch: dict[str, Any],
    classes: int,
    task: Task,
) -> Tensor:
    """The teacher's logits, after checking that they match the student's; `networks`: those that run."""
    batch = dict(task.for_teacher(batch))
    for network in networks:
        refuse_missing_inputs("teacher", network, batch)
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(untouched(network))
        taught = warn_if_random("teacher", networks[0], partial(_taught, teacher, networks[0], batch))
    named = task.vocabulary and None not in map(vocabulary_size, (student, *networks))
    its = taught.shape[class_dim(taught)]
    if its != classes and not named:  # known vocabularies are compared by hfkd.models.vocabulary
        raise ValueError(
            f"the teacher has {its} classes and the student {classes}, but distillation compares logits class by "
            "class: build the student with the teacher's number of labels, or select the teacher's classes "
            "(FrozenTeacher(teacher, classes=[...]))"
        )
    if not torch.isfinite(taught).all():
        if rows := broken_rows(batch):
            raise ValueError(
                f"the inputs of training row {rows[0]} are NaN or infinite: check the data and the output of its "
                "transform"
            )
        if bool(((taught == float("-inf")) | torch.isfinite(taught)).all()):
            raise ValueError(
                "the teacher's logits are -inf for some classes on the first training rows, as if these classes "
                "were masked: the divergence is not defined for a probability of 0; use a low finite number, "
                "such as -1e4, or remove these classes from both networks"
            )
        raise ValueError("the teacher's logits are NaN or infinite on the first training rows: check its checkpoint")
    if task.class_ids:
        refuse_probabilities("teacher", taught)
    # Not for images, which the teacher gets in its own normalisation and size; they have no shift of labels either.
    for network in () if "pixel_values" in batch and task.one_item_a_row else networks:
        compare_own_loss(network, on_device_of(network, batch), task)
    return taught


def _taught(teacher: FrozenTeacher, first: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The teacher's logits. ValueError for a batch that it cannot process, such as images of another size."""
    try:
        _say_channels(first, batch)
        with naming_inputs("teacher", first, batch):
            return teacher(**on_device_of(teacher, dict(batch)))
    except Unlike as error:
        raise ValueError(str(error)) from error


@contextmanager
def naming_inputs(whose: str, network: nn.Module, batch: Mapping[str, Any]) -> Iterator[None]:
    """Context that says which images or sounds a network cannot process, of which torch names inner sizes only."""
    try:
        yield
    except (torch.OutOfMemoryError, Unlike):
        raise
    except (ValueError, RuntimeError, AssertionError) as error:
        name = next((one for one in REMEDIES if isinstance(batch.get(one), Tensor)), None)
        if name is None or (whose == "student" and isinstance(error, ValueError)):
            raise
        said = _images_in_words(batch[name]) if name == IMAGES else _sounds_in_words(name, batch[name])
        half = whose == "student" and any(p.dtype in HALF for p in network.parameters())  # a teacher's inputs are cast
        raise ValueError(
            f"the {whose}, a {type(network).__name__}, cannot process the training {said} ({error}): "
            f"{IN_FLOAT32 if half and 'type' in str(error) else REMEDIES[name][whose]}"
        ) from error


def _images_in_words(images: Tensor) -> str:
    odd = images.ndim == IMAGE_DIMS and images.shape[1] not in (1, 3)
    channels = f" and {images.shape[1]} channels" if odd else ""
    return f"images, which have the size {tuple(images.shape[-2:])}{channels}"


def _sounds_in_words(name: str, sounds: Tensor) -> str:
    return f"sounds, whose {name} have the shape {tuple(sounds.shape[1:])}"


def _say_channels(network: nn.Module, batch: Mapping[str, Any]) -> None:
    images, wanted = batch.get("pixel_values"), image_channels(network)
    if images is not None and (images.shape[1], wanted) in ((1, 3), (3, 1)):
        how = "repeated" if wanted == 3 else "averaged"
        logger.warning(
            "The teacher takes images with %d channels, the student with %d: channels are %s for the teacher.",
            wanted,
            images.shape[1],
            how,
        )


def on_device_of(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    return dict(batch) if next(model.parameters(), None) is None else send_to_device(batch, device_of(model))
