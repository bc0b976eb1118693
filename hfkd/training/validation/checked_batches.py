"""Checks labels and token ids of each batch on the host, and reports the row of one that is out of range.

On the device it would end in a plain IndexError, or in an assertion that kills the process. B rows, L length.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import has_length, unwrap_peft_model

from hfkd.data.labels import class_ids
from hfkd.models.positions import embeddings, farthest, position_limit, target_limit, too_long
from hfkd.tasks.base import Task
from hfkd.training.validation.tokens import LABELS
from hfkd.utils.targets import IGNORED

NOTHING_TO_LEARN = "there is nothing to learn from it; remove the row"
NOTHING_TO_SCORE = "there is nothing to compare a prediction with; remove the row"
SEARCHED_SECONDS = 20.0  # time limit for finding the row of a wrong label


@dataclass(frozen=True)
class Bounds:
    """Labels are below `classes`, token ids below `ids`, rows at most `positions` long, the limit of `shortest`.

    targets: the most labels of a row that a decoder reads, and the name of its network.

    None: unknown, and not checked.
    """

    classes: int | None
    ids: int | None
    ignoring: tuple[int, ...]  # labels that mean "no label"
    positions: int | None = None
    shortest: str = ""
    of_teacher: "Bounds | None" = None  # for the tokens that it alone reads
    targets: tuple[int, str] | None = None
    task: Task | None = None  # with `of_teacher`

    @classmethod
    def of(cls, student: nn.Module, teachers: Iterable[nn.Module], task: Task, classes: int | None) -> "Bounds":
        """`classes`: the size of the student's logits, if known; None: taken from its config."""
        teachers = tuple(teachers)
        if task.own_rows and teachers:
            apart = cls._of_all(teachers, task, None)
            return replace(cls._of_all((student,), task, classes), of_teacher=apart, task=task)
        return cls._of_all((student, *teachers), task, classes)

    @classmethod
    def _of_all(cls, networks: Sequence[nn.Module], task: Task, classes: int | None) -> "Bounds":
        """The bounds of rows that all `networks` read. `classes`: of the first one."""
        bare: Any = unwrap_peft_model(networks[0])
        if classes is None and isinstance(bare, PreTrainedModel):
            classes = bare.config.get_text_config().vocab_size if task.vocabulary else bare.config.num_labels
        sizes = [size for size in map(embeddings, networks) if size is not None]
        limit, shortest = _shortest(networks, position_limit) or (None, "")
        targets = _shortest(networks, target_limit) if task.labels_to_networks else None
        sides = limit, shortest, None, targets
        return cls(classes if task.class_ids else 2, min(sizes, default=None), task.ignores, *sides)


@dataclass
class CheckedCollator:
    """`collate`, followed by a check of labels and token ids.

    no_label: why a row may not have the label -100, and the remedy; None: it may, and has no label.
    """

    collate: Callable[[Any], Any]
    bounds: Bounds
    dataset: Any
    no_label: str | None = NOTHING_TO_LEARN

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        if isinstance(batch, Mapping):
            none = self.bounds.ignoring if self.no_label else (*self.bounds.ignoring, IGNORED)
            self._check_read(batch, none)
            apart, task = self.bounds.of_teacher, self.bounds.task
            if apart is not None and task is not None and task.teacher_reads(batch):
                CheckedCollator(self.collate, apart, ())._check_read(task.for_teacher(batch), apart.ignoring)
        return batch

    def _check_read(self, batch: Mapping[str, Any], ignored: tuple[int, ...]) -> None:
        """Check what one network reads."""
        self._check(batch, "labels", self.bounds.classes, ignored)
        self._check(batch, "input_ids", self.bounds.ids, ())
        self._check_length(batch)

    def _check_length(self, batch: Mapping[str, Any]) -> None:
        labels = batch.get("labels")
        if self.bounds.targets is not None and isinstance(labels, Tensor) and labels.shape[-1] > self.bounds.targets[0]:
            raise ValueError(too_long(labels.shape[-1], *self.bounds.targets, LABELS))
        ids, limit = batch.get("input_ids"), self.bounds.positions
        if limit is None or not isinstance(ids, Tensor) or ids.shape[-1] <= limit or ids.device.type != "cpu":
            return  # assuming that position ids do not exceed the row, as with all collators
        if (length := farthest(batch)) > limit:
            raise ValueError(too_long(length, limit, self.bounds.shortest))

    def _check(self, batch: Mapping[str, Any], name: str, below: int | None, ignored: tuple[int, ...]) -> None:
        values = batch.get(name)
        if below is None or not isinstance(values, Tensor) or values.device.type != "cpu" or not values.numel():
            return
        if values.is_floating_point() or values.dtype is torch.bool:  # class probabilities
            return
        low, high = values.aminmax()
        if low >= 0 and high < below:
            return
        known = _known(values, below, ignored)
        if not known.all():
            place = int((~known).reshape(len(values), -1).any(1).nonzero()[0])
            value, row = int(values[~known][0]), self._row(batch, name, place, below, ignored)
            raise ValueError(self._message(name, value, row, below))

    def _message(self, name: str, value: int, row: str, below: int) -> str:
        if name == "input_ids":
            return (
                f"token id {value} of {row} is out of range: both networks have embeddings for {below} tokens (0 "
                f"to {below - 1}); tokenise with the networks' own tokenizer"
            )
        if value == IGNORED and IGNORED not in self.bounds.ignoring:
            return f"{row} has the label {IGNORED}, which means no label: {self.no_label}"
        return (
            f"the label {value} of {row} is out of range: the student has {below} classes (0 to {below - 1}); "
            "give it more labels, or choose another label column"
        )

    def _row(self, batch: Mapping[str, Any], name: str, place: int, below: int, ignored: tuple[int, ...]) -> str:
        """Describe the row at `place` in the batch: by its index, else the first such row of the dataset."""
        index = batch.get("index")
        if isinstance(index, Tensor) and index.device.type == "cpu" and len(index) > place:
            return f"row {int(index[place])}"
        deadline = time.monotonic() + SEARCHED_SECONDS
        for number in range(len(self.dataset) if has_length(self.dataset) else 0):
            row = self.dataset[number]
            values = torch.as_tensor(row[name]) if isinstance(row, Mapping) and name in row else torch.zeros(1)
            if not _known(values, below, ignored).all():
                return f"row {number}"
            if time.monotonic() > deadline:
                break
        return f"row {place} of a batch"


def _shortest(networks: Iterable[nn.Module], limit_of: Callable[[nn.Module], int | None]) -> tuple[int, str] | None:
    """The lowest limit of the networks, and the name of the one that has it; None without any."""
    limits = {limit: network for network in networks if (limit := limit_of(network)) is not None}
    return None if not limits else (lowest := min(limits), type(unwrap_peft_model(limits[lowest])).__name__)


def _known(values: Tensor, below: int, ignored: tuple[int, ...]) -> Tensor:
    values = class_ids(values)
    known = (values >= 0) & (values < below)
    for label in ignored:
        known = known | (values == label)
    return known
