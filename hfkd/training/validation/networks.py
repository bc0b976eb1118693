"""Checks of networks and datasets on the first rows, before anything is written."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import Tensor, nn

from hfkd.data.collate import ImageCollator, views_as_rows
from hfkd.data.epochs import image_transform
from hfkd.data.first_rows import first_rows, map_style, sets_by_name
from hfkd.data.labels import class_ids
from hfkd.data.text_collate import TokenCollator
from hfkd.data.token_rows import OWN_COLUMNS
from hfkd.data.used_columns import label_column
from hfkd.models.calling import OWN_KEYS, Call, class_dim, logits_of
from hfkd.models.inputs import IMAGE_DIMS, image_channels
from hfkd.models.peers import networks_of
from hfkd.models.positions import embeddings, farthest, position_limit, said_limit, too_long
from hfkd.models.vocabulary import vocabulary_size
from hfkd.tasks.base import Task
from hfkd.tasks.proof import compare_own_loss, untouched
from hfkd.teachers import FrozenTeacher
from hfkd.teachers.ensemble import Unlike
from hfkd.training.validation.checked_batches import NOTHING_TO_LEARN, NOTHING_TO_SCORE
from hfkd.training.validation.slots import SlotCheck
from hfkd.utils.finite import broken_rows
from hfkd.utils.targets import IGNORED

logger = logging.getLogger(__name__)
Collate = Callable[[list[Any]], dict[str, Tensor]]


def check_datasets(datasets: Mapping[str, Any], collate: Collate, task: Task) -> None:
    """Raise ValueError for a dataset that is empty, or whose first rows cannot be collated.

    Also for an evaluation set with several views of each image, or without labels.
    """
    for name, dataset in datasets.items():
        for part, rows in sets_by_name(dataset, name).items():
            if not map_style(rows):
                continue
            if len(rows) == 0:
                raise ValueError(
                    f"{part} is empty: there is nothing to {'train on' if 'train' in name else 'evaluate'}"
                )
            batch = _first_batch(part, rows, collate)
            images = batch.get("pixel_values") if task.views else None
            if name != "train_dataset" and not isinstance(batch.get("labels"), Tensor):
                raise ValueError(
                    f"the rows of {part} have no labels, but eval_loss is the cross-entropy on labels: "
                    f"{task.without_labels}"
                )
            if name != "train_dataset":
                _warn_of_mixing(part, rows[0], batch.get("labels"))
            if name != "train_dataset" and images is not None and images.ndim == 5:
                raise ValueError(
                    f"{part} yields {images.shape[1]} views of each image, but evaluation needs one: use the "
                    "transform's clean() for it"
                )


def _warn_of_mixing(name: str, row: Any, labels: Any) -> None:
    """Warn of MixUp or CutMix in the data_collator, which would apply in evaluation too."""
    column = label_column(row) if isinstance(row, Mapping) else None
    its = None if column is None else row[column]
    mixed = isinstance(labels, Tensor) and labels.is_floating_point() and labels.ndim == 2
    if mixed and its is not None and np.ndim(its) == 0:
        logger.warning(
            "The data_collator mixes the labels of %s, so that eval_loss and the metrics are computed on mixed "
            "images: let it mix in training only, or mix in the transform of the training set.",
            name,
        )


def _first_batch(name: str, dataset: Any, collate: Collate) -> dict[str, Tensor]:
    """A batch of two rows, since timm's Mixup needs an even number."""
    rows = first_rows(dataset)
    try:
        return collate(rows)
    except ValueError:  # from hfkd's and transformers' collators, with their own explanation
        raise
    except Exception as error:
        columns = f"columns {sorted(rows[0])}" if isinstance(rows[0], Mapping) else f"type {type(rows[0]).__name__}"
        raise ValueError(
            f"the data_collator cannot collate the first rows of {name}, with {columns} ({type(error).__name__}: "
            f"{error}): correct the collator or the rows; remove_unused_columns=True drops the columns that no "
            "network takes"
        ) from error


def probed_dataset(datasets: Mapping[str, Any]) -> Any:
    """The dataset to check before training: the training set, or else the evaluation set."""
    for rows in (datasets["train_dataset"], datasets["eval_dataset"]):
        if rows is not None:
            return next(iter(rows.values())) if isinstance(rows, dict) else rows
    return None


def texts_alone(dataset: Any) -> bool:
    """Whether the rows have tokens and no images."""
    row = next(iter(first_rows(dataset)), None)
    return isinstance(row, Mapping) and "input_ids" in row and not {"pixel_values", "image", "images"} & row.keys()


def say_left_out(dataset: Any, collate: Collate, call: Call, labels: Sequence[str]) -> None:
    """Log once which columns of the training rows do not reach the student.

    A warning for those that a user's collator keeps, and for those that hfkd's collator drops though the student takes
    them; other columns are not expected to be inputs, and are logged at level info.
    """
    if not map_style(dataset) or not isinstance(dataset[0], Mapping):
        return
    row = dataset[0]
    batch = collate(first_rows(dataset))
    if kept := call.left_out(batch, labels):
        logger.warning(
            "The columns %s of the batch are not passed to the student, as its forward does not accept them.", kept
        )
    if isinstance(collate, (ImageCollator, TokenCollator)):
        dropped = [name for name in row if name not in batch and name not in (*labels, *OWN_KEYS, *OWN_COLUMNS)]
        if wanted := sorted(name for name in dropped if call.takes(name)):
            logger.warning(
                "The columns %s are dropped from the batch, although the student accepts them: pass a "
                "data_collator that keeps them.",
                wanted,
            )
        elif dropped:
            logger.info(
                "The columns %s are dropped from the batch: the student's forward does not accept them.", dropped
            )


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
    _check_scored(scored, collate, classes, task)
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
    _refuse_unlabelled(batch, task)
    for network in networks if "input_ids" in batch else ():
        read = batch if network is student else task.for_teacher(batch)
        _check_positions(network, dataset, "length" if read is batch else "teacher_length")
        _check_tokens(network, read)
    task.check_rows(rows, batch)
    task.look_at_labels(student, batch)
    batch = task.probe(batch)
    with untouched(student), naming_images("student", student, batch):
        output = call.output(student, on_device_of(student, batch))
    logits = logits_of(output)
    call.added_loss(output)  # raises if its weight in the loss is unknown
    task.check_logits(logits)
    classes = logits.shape[class_dim(logits)]
    _check_labels(dataset, batch, classes, task, no_label)
    batch["labels"] = class_ids(batch["labels"])
    for network in networks_of(student):
        compare_own_loss(network, on_device_of(network, batch), task)
    batch = dict(task.after_student(batch, output))
    if teacher is not None:
        taught = _check_teacher(student, teacher, batch, classes, task)
        if check_slots is not None:
            check_slots(batch, logits, taught)
    return classes


def batch_of(rows: list[Any], collate: Collate, call: Call, task: Task, labels: Sequence[str] = ()) -> dict[str, Any]:
    """A batch of `rows`, as it is passed to the networks."""
    return as_networks_get(collate(rows), call, task, labels)


def as_networks_get(batch: Mapping[str, Any], call: Call, task: Task, labels: Sequence[str] = ()) -> dict[str, Any]:
    batch = call.without_labels(batch, labels)
    return views_as_rows(batch) if task.views else dict(batch)


def _check_teacher(
    student: nn.Module, teacher: FrozenTeacher, batch: dict[str, Any], classes: int, task: Task
) -> Tensor:
    """The teacher's logits, after checking that they match the student's."""
    batch = dict(task.for_teacher(batch))
    with ExitStack() as stack:
        for network in teacher.networks:
            stack.enter_context(untouched(network))
        taught = _taught(teacher, batch)
    named = task.vocabulary and None not in map(vocabulary_size, (student, *teacher.networks))
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
    # Not for images, which the teacher gets in its own normalisation and size; they have no shift of labels either.
    for network in () if "pixel_values" in batch and task.one_item_a_row else teacher.networks:
        compare_own_loss(network, on_device_of(network, batch), task)
    return taught


def _taught(teacher: FrozenTeacher, batch: Mapping[str, Any]) -> Tensor:
    """The teacher's logits. ValueError for a batch that it cannot process, such as images of another size."""
    try:
        _say_channels(teacher, batch)
        with naming_images("teacher", teacher.networks[0], batch):
            return teacher(**on_device_of(teacher, dict(batch)))
    except Unlike as error:
        raise ValueError(str(error)) from error


@contextmanager
def naming_images(whose: str, network: nn.Module, batch: Mapping[str, Any]) -> Iterator[None]:
    """Context that says which images a network cannot process, of which torch names inner sizes only."""
    try:
        yield
    except (torch.OutOfMemoryError, Unlike):
        raise
    except (ValueError, RuntimeError, AssertionError) as error:
        images = batch.get("pixel_values")
        if not isinstance(images, Tensor) or (whose == "student" and isinstance(error, ValueError)):
            raise
        remedy = (
            "pass the size and normalisation that it expects, FrozenTeacher(teacher, wanted=InputSpec(mean, std, "
            "(height, width))), and its images are converted"
            if whose == "teacher"
            else "resize them in the dataset's transform, or build the student for them (with timm, in_chans= and, for "
            "networks of a fixed size, img_size=)"
        )
        odd = images.ndim == IMAGE_DIMS and images.shape[1] not in (1, 3)
        channels = f" and {images.shape[1]} channels" if odd else ""
        raise ValueError(
            f"the {whose}, a {type(network).__name__}, cannot process the training images, which have the size "
            f"{tuple(images.shape[-2:])}{channels} ({error}): {remedy}"
        ) from error


def _say_channels(teacher: FrozenTeacher, batch: Mapping[str, Any]) -> None:
    images, wanted = batch.get("pixel_values"), image_channels(teacher.networks[0])
    if images is not None and (images.shape[1], wanted) in ((1, 3), (3, 1)):
        how = "repeated" if wanted == 3 else "averaged"
        logger.warning(
            "The teacher takes images with %d channels, the student with %d: channels are %s for the teacher.",
            wanted,
            images.shape[1],
            how,
        )


def _check_tokens(network: nn.Module, batch: Mapping[str, Any]) -> None:
    """Check that the first rows' tokens, including padding, have embeddings, and that the rows are not too long."""
    ids, known, limit = batch["input_ids"], embeddings(network), position_limit(network)
    if known is not None and ids.numel() and int(ids.max()) >= known:
        raise ValueError(
            f"token id {int(ids.max())} in the first rows, or in their padding, is out of range: "
            f"{type(network).__name__} has embeddings for {known} tokens (0 to {known - 1}); tokenise with the "
            "networks' own tokenizer, and pad with one of its tokens (tokenizer.pad_token = tokenizer.eos_token)"
        )
    length = farthest(batch)
    if limit is not None and length > limit:
        raise ValueError(too_long(length, limit, type(network).__name__))


def _check_positions(network: nn.Module, dataset: Any, column: str = "length") -> None:
    """Raise ValueError if a row of `tokenize_dataset` exceeds the network's maximum length."""
    limit = said_limit(network)
    if limit is None or not isinstance(dataset, Dataset) or column not in dataset.column_names:
        return
    longest = int(np.max(dataset.with_format("numpy")[column][:]))
    if longest > limit:
        raise ValueError(
            f"the longest training row has {longest} tokens, but {type(network).__name__} has {limit} positions: "
            f"lower max_length to {limit} or less"
        )


def _check_scored(scored: Any, collate: Collate, classes: int, task: Task) -> None:
    """Check the labels of evaluation sets, whose errors would otherwise show only after training, or never."""
    for part, rows in sets_by_name(scored).items():
        if not map_style(rows) or len(rows) == 0:
            continue
        batch = collate(first_rows(rows))
        if not isinstance(batch.get("labels"), Tensor):
            continue
        try:
            _check_labels(rows, batch, classes, task, NOTHING_TO_SCORE)
        except ValueError as error:
            raise ValueError(f"{part}: {error}") from error


def _refuse_unlabelled(batch: Mapping[str, Any], task: Task) -> None:
    if not isinstance(batch.get("labels"), Tensor):
        raise ValueError(f"the batch has no tensor of labels: it has {sorted(batch)}; {task.without_labels}")


def _check_labels(dataset: Any, batch: Mapping[str, Any], classes: int, task: Task, no_label: str | None) -> None:
    probed = batch["labels"]
    task.check_labels(probed, classes)
    if probed.is_floating_point() or not task.class_ids:
        task.check_values(probed)
        return
    stored = stored_labels(dataset, task)
    labels = class_ids(probed) if stored is None else stored
    for none in task.ignores:
        labels = labels[labels != none]
    if IGNORED not in task.ignores and bool((labels == IGNORED).any()):
        if no_label:
            raise ValueError(f"a row has the label {IGNORED}, which means no label: {no_label}")
        labels = labels[labels != IGNORED]
    low, high = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
    if low == high == -1:
        raise ValueError(
            "the labels are all -1, as in test splits with hidden labels (such as GLUE's): there is nothing to "
            "compare with; use another split, such as validation"
        )
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels run from {low} to {high}, but the student has {classes} classes (0 to {classes - 1}): "
            "give it more labels, or choose another label column"
        )


def stored_labels(dataset: Any, task: Task) -> Tensor | None:
    """The labels of all rows, if the column is passed to batches unchanged: a user's transform may map them."""
    stored = isinstance(dataset, Dataset) and "labels" in dataset.column_names and task.one_item_a_row
    whole = stored and (dataset.format["type"] != "custom" or image_transform(dataset) is not None)
    return torch.as_tensor(dataset.with_format("numpy")["labels"][:]) if whole else None


def on_device_of(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    parameter = next(model.parameters(), None)
    return dict(batch) if parameter is None else send_to_device(batch, parameter.device)
