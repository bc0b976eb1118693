"""Checks before training, by the names of classes, that data, teacher and student number the classes alike.

C classes.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import VisionDataset
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.trainer_utils import unwrap_peft_model

from hfkd.data.epochs import ImageStream, epoch_transform, image_transform
from hfkd.data.first_rows import sets_by_name
from hfkd.models.label_names import cannot_compare, is_numbering, label_names_of, order_of, out_of_order, same_names
from hfkd.models.peers import networks_of
from hfkd.teachers import FrozenTeacher
from hfkd.teachers.class_order import order_for
from hfkd.utils.random_state import kept_random_state
from hfkd.utils.targets import IGNORED

logger = logging.getLogger(__name__)

PROBED = 8  # rows whose labels are compared with the stored column
Names = tuple[str, ...]


def label_names_of_data(dataset: Any, collate: Callable[[list[Any]], Any]) -> Names | None:
    """The names of the classes of the labels in a dataset's batches, if known; else None.

    Taken from the feature `labels`, or the only `ClassLabel` of a dataset if the transform leaves that column
    unchanged, or the `classes` of a torchvision dataset (by its `target_transform`), or the hfkd transform. For token
    classification, from the sequence feature whose values the labels repeat. Of a `Subset` or `ConcatDataset`, those of
    its parts. Raises ValueError for parts that number their classes differently.
    """
    if isinstance(dataset, Subset):
        return label_names_of_data(dataset.dataset, collate)
    if isinstance(dataset, ConcatDataset):
        return _names_of_all([label_names_of_data(part, collate) for part in dataset.datasets])
    transform = epoch_transform(dataset)
    if transform is not None and transform.label_names is not None:
        return None if is_numbering(transform.label_names) else tuple(transform.label_names)
    features = dataset.features if isinstance(dataset, (Dataset, ImageStream)) else None
    named = {name: tuple(f.names) for name, f in (features or {}).items() if isinstance(f, ClassLabel) and f.names}
    of_words = {n: tuple(f.feature.names) for n, f in (features or {}).items() if _lists_classes(f)}
    if isinstance(dataset, Dataset) and of_words and not named:
        named = _spread_out(dataset, of_words, collate)
        return next(iter(named.values())) if len(set(named.values())) == 1 else None
    if isinstance(dataset, Dataset) and named and image_transform(dataset) is None:
        named = _handed_on(dataset, named, collate)
    names = named.get("labels") or (next(iter(named.values())) if len(named) == 1 else None)
    if isinstance(dataset, VisionDataset) and vars(dataset).get("classes"):
        names = _mapped(tuple(map(str, vars(dataset)["classes"])), getattr(dataset, "target_transform", None))
    return None if names is None or is_numbering(names) else names


def _names_of_all(parts: Sequence[Names | None]) -> Names | None:
    """The names that all parts of a training set have; None if one has none."""
    first = parts[0]
    if first is None or None in parts:
        return None
    for number, others in enumerate(parts):
        if others is not None and order_of(others, first, f"part {number}", "part 0") is not None:
            raise ValueError(
                f"part {number} of a ConcatDataset numbers its classes differently from part 0: {_listed(others)} "
                f"instead of {_listed(first)}. Give all parts the same classes in the same order"
            )
    return first


def _mapped(names: Names, transform: Callable[[int], Any] | None) -> Names | None:
    """The names by the labels that a `target_transform` makes of them; None unless it numbers the same classes."""
    if transform is None:
        return names
    try:
        labels = [int(transform(number)) for number in range(len(names))]
    except Exception:  # a user's function may raise any error, for labels that are no numbers
        return None
    if sorted(labels) != list(range(len(names))):
        return None
    return tuple(names[labels.index(label)] for label in range(len(names)))


def _handed_on(dataset: Dataset, named: dict[str, Names], collate: Callable[[list[Any]], Any]) -> dict[str, Names]:
    """The columns whose values equal the labels of the first rows; for mixed labels, those of as many classes."""
    count = min(PROBED, len(dataset))
    with kept_random_state():
        labels = collate([dataset[i] for i in range(count)]).get("labels")
    if not isinstance(labels, Tensor):
        return named
    if labels.is_floating_point():  # mixed labels [B, C]
        return {column: names for column, names in named.items() if labels.ndim == 2 and len(names) == labels.shape[1]}
    stored = dataset.with_format(None).select(range(count))
    return {column: names for column, names in named.items() if list(stored[column][:]) == labels.tolist()}


def _lists_classes(feature: Any) -> bool:
    inner = getattr(feature, "feature", None)
    return isinstance(inner, ClassLabel) and bool(inner.names)


def _spread_out(dataset: Dataset, named: dict[str, Names], collate: Callable[[list[Any]], Any]) -> dict[str, Names]:
    """The list columns whose classes the batches' labels [B, L] repeat, word by word, on the first rows."""
    rows = range(min(PROBED, len(dataset)))
    with kept_random_state():
        labels = collate([dataset[i] for i in rows]).get("labels")
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point() or len(labels) != len(rows):
        return {}
    stored = dataset.with_format(None)
    known = [row[row != IGNORED].tolist() for row in labels]
    return {
        column: names
        for column, names in named.items()
        if any(known) and all(_repeats(known[i], stored[i][column]) for i in rows)
    }


def _repeats(labels: list[int], words: list[int]) -> bool:
    """Whether the labels of tokens are those of the first words, in order, each once or repeated."""
    place = 0
    for label in labels:
        if place < len(words) and words[place] == label:
            place += 1
        elif place == 0 or words[place - 1] != label:
            return False
    return True


def check_label_names(
    datasets: Mapping[str, Any], collate: Callable[[list[Any]], Any], student: nn.Module, teacher: FrozenTeacher | None
) -> Names | None:
    """Reorder the teachers' logits to the data's order of classes; returns the data's class names, if it has any.

    Raises ValueError for an evaluation set that numbers its classes differently from the training set; for a teacher
    with other classes; and if teacher and student have the same classes in another order and the data has no names.
    Warns if names cannot be compared.
    """
    sets = {"train_dataset": datasets["train_dataset"], **sets_by_name(datasets["eval_dataset"])}
    found = {name: label_names_of_data(part, collate) for name, part in sets.items()}
    names = next((one for one in found.values() if one is not None), None)
    if names is None:
        for one in _each(teacher):
            if one.aligned:  # for other data
                one.reorder(None)
        _compare_networks(student, teacher)
        return None
    for part, others in found.items():
        _refuse_other_numbers(part, others, names)
    for one in _each(teacher):
        _align(one, names)
    return names


def _refuse_other_numbers(part: str, others: Names | None, names: Names) -> None:
    if others is not None and order_of(others, names, part, "the training set") is not None:
        raise ValueError(
            f"{part} numbers its classes differently from train_dataset: {_listed(others)} instead of "
            f"{_listed(names)}. Give both the same ClassLabel feature (in datasets: align_labels_with_mapping)"
        )


def check_other_set(
    dataset: Any, known: Mapping[str, Any], names: Names | None, collate: Callable[[list[Any]], Any], predicts: bool
) -> None:
    """Raise ValueError for a set to evaluate that numbers its classes differently from those `names`.

    known: the sets that have been compared. For predictions, whose labels need not be used, a warning.
    """
    compared = [part for given in known.values() for part in sets_by_name(given).values()]
    if names is None or any(dataset is one for one in compared):
        return
    try:
        _refuse_other_numbers("this dataset", label_names_of_data(dataset, collate), names)
    except ValueError as error:
        if not predicts:
            raise
        logger.warning("The metrics of this prediction would be wrong: %s.", error)


def _align(teacher: FrozenTeacher, names: Names) -> None:
    own = teacher.label_names
    teacher.reorder(None)  # it may have been used with other data
    if own is None:
        if out_of_order(names):
            logger.warning(
                "The classes of the data are numbered folders in alphabetical order (%s), and the teacher has no "
                "class names: its class 2 may not be the folder 2. Pass the teacher's names "
                "(FrozenTeacher(teacher, label_names=[...])), or rename the folders to 00, 01, ...", _listed(names)
            )  # fmt: skip
        return
    if cannot_compare(own, names):
        logger.warning(
            "The teacher's class names are %s, those of the data %s: they cannot be compared, and the classes "
            "are assumed to be in the same order. Check teacher_accuracy.", _listed(own), _listed(names)
        )  # fmt: skip
        return
    order = order_for(teacher, names, "the teacher")
    if order is not None:
        teacher.reorder(order)
        teacher.aligned = True
        logger.warning(
            "The teacher has the data's classes in another order (%s): its logits are reordered to the data's "
            "order (%s).",
            _listed(own), _listed(names)
        )  # fmt: skip


def _compare_networks(student: nn.Module, teacher: FrozenTeacher | None) -> None:
    """Without names in the data: if two networks order the same classes differently, one of them must be wrong."""
    mine = label_names_of(student)
    for one in _each(teacher):
        own = one.label_names
        if mine is None or own is None or len(mine) != len(own) or set(mine) != set(own) or mine == own:
            continue
        raise ValueError(
            f"teacher and student have the same classes in another order ({_listed(own)} and {_listed(mine)}), "
            "and the data has no class names: train on a datasets.Dataset with a ClassLabel feature, or correct "
            "config.id2label of the network whose names do not match the labels"
        )


def write_label_names(student: nn.Module, names: Sequence[str] | None) -> None:
    """Write the data's class names into the student's config, replacing different ones."""
    for model in networks_of(student):
        bare: Any = unwrap_peft_model(model)
        _forget_stored_names(bare)
        own = label_names_of(bare)
        if names is None or (own is not None and same_names(own, names)):
            continue
        if isinstance(bare, PreTrainedModel) and bare.config.num_labels == len(names) and own != tuple(names):
            if own is not None:
                logger.warning(
                    "The class names in the student's config, %s, are replaced by those of the data, %s.",
                    _listed(own),
                    _listed(names),
                )
            bare.config.id2label = dict(enumerate(names))
            bare.config.label2id = {name: i for i, name in enumerate(names)}
            _forget_stored_names(bare)
        elif "pretrained_cfg" in vars(bare) and getattr(bare, "num_classes", None) == len(names):
            vars(bare)["pretrained_cfg"]["label_names"] = list(names)


def _forget_stored_names(network: nn.Module) -> None:
    """Drop the class names of the file that a timm model was loaded from, if it has others by now (`id2label`).

    The wrapper's config keeps them by the side, and would save them instead.
    """
    config = getattr(network, "config", None)
    if isinstance(config, PreTrainedConfig) and "label_names" in vars(config):
        stored, own = vars(config)["label_names"], list((config.id2label or {}).values())
        if stored is None or list(stored) != own:
            del vars(config)["label_names"]


def _each(teacher: FrozenTeacher | None) -> Sequence[FrozenTeacher]:
    return () if teacher is None else teacher.members


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
