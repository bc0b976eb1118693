"""What a task is: the one thing that knows what a network's head means.

B batch rows, L length, N items, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hfkd.data.labels import refuse_words
from hfkd.data.used_columns import LABELS, used
from hfkd.losses.items import Items
from hfkd.losses.registry import Factory, registering
from hfkd.losses.strips import MapItems
from hfkd.models.calling import INPUTS, Call
from hfkd.utils.targets import Targets

Batch = Mapping[str, Any]
Collate = Callable[..., Any]

TASKS: dict[str, Callable[[], "Task"]] = {}


class Task(ABC):
    """From the rows of a dataset to items and labels. Nothing outside of this folder asks what an item is.

    Its loss is the mean cross-entropy over the items' labels, and `proof.py` holds it against the networks' own.
    """

    pipeline_tag: ClassVar[str]  # the Hub's name of it
    item: ClassVar[str]  # what one item is, in messages
    one_item_a_row: ClassVar[bool] = True
    vocabulary: ClassVar[bool] = False  # its classes are the tokens of a tokenizer, else those that the data name
    mixes: ClassVar[bool] = False  # rows can be mixed (MixUp, CutMix), and labels be shares of classes
    views: ClassVar[bool] = False  # five dimensions of pixel_values are several views of each image
    class_ids: ClassVar[bool] = True  # integer labels are those; else a 0 or a 1 for each class
    ignores: ClassVar[tuple[int, ...]] = ()  # labels that stand for none
    lacks_labels: ClassVar[bool] = False  # a training row may have the label -100, and is distilled without
    relates: ClassVar[bool] = True  # items are over the same classes, so that a batch of them can be compared
    by_target: ClassVar[bool] = False  # a loss over chunks of target tokens, and a cache of them, serve it
    by_map: ClassVar[bool] = False  # items are pixels of maps, which can be resized and learned strip by strip
    generates: ClassVar[bool] = False
    without_labels: ClassVar[str] = "call the rows' column of them labels, or let the data_collator make one"
    scanned_items: ClassVar[int | None] = None  # so many of a data set's are kept by a scan of all; None: all
    by_share: ClassVar[bool] = False  # items are known after the forward only: the loss counts samples, all alike
    own_tokens: ClassVar[bool] = False  # the teacher reads tokens of its own
    follows_student: ClassVar[bool] = False  # what the teacher is asked depends on what the student does
    predicts: ClassVar[bool] = False  # evaluation gives predictions for a metric, and no loss
    normalises: ClassVar[bool] = False  # its networks normalise and resize their images themselves
    segmentation_stride: int | None = None
    complete: bool = True  # every training row has a label; False: some may be -100
    guessed: bool = False  # neither a network's class nor the user has named it
    scored_by: ClassVar[str | None] = None  # its default metric (`hfkd.evaluation.metrics`); None: the loss alone

    @property
    def needs_no_labels(self) -> bool:
        """Whether rows without labels can be distilled."""
        return type(self).stand_ins is not Task.stand_ins

    @property
    def name(self) -> str:
        return next(name for name, made in TASKS.items() if made is type(self))

    def configure(self, args: Any) -> None:
        """Take what the arguments say of it. Raises ValueError for what they say of another task."""
        if getattr(args, "segmentation_stride", None) is not None:
            raise ValueError(
                f"segmentation_stride={args.segmentation_stride} is for semantic_segmentation, and the task is "
                f"{self.name}: leave it out"
            )

    def check_networks(  # noqa: B027 - most take any
        self, students: Sequence[nn.Module], teachers: Sequence[nn.Module], stored: bool
    ) -> None:
        """Raise ValueError for a network that is none for it; `stored`: the teacher is one of which no network runs."""

    def check_loss(self, loss: Any) -> None:  # noqa: B027 - most take any
        """Raise ValueError for a slot of the `DistillationLoss` that means nothing here."""

    def check_own_loss(self, network: nn.Module, batch: Batch) -> None:  # noqa: B027 - for models of transformers
        """Raise ValueError where the items that are seen are not those of the network's own loss; as `proof` does."""

    def as_networks_have_it(self, network: nn.Module) -> AbstractContextManager["Task"]:
        """Within it the task, and the network, whose own loss is the task's cross-entropy, and `added_loss`."""
        return nullcontext(self)

    def given_besides(self, call: Call, batch: Batch) -> dict[str, Any]:
        """What the student is given beside its inputs, so that it computes what its own loss adds."""
        return {}

    def added_loss(self, call: Call, output: Any, batch: Batch) -> Tensor | None:
        """What the student adds to the cross-entropy in its own loss, one number for the batch; None: nothing."""
        return call.added_loss(output)

    def hub_tag(self, call: Call) -> str:
        """The pipeline tag of a network with these inputs."""
        return self.pipeline_tag

    @abstractmethod
    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        """Rows -> a batch, where the user brings no collator. `columns`: those that the network or the loss wants."""

    def ready(self, collate: Collate) -> Collate:
        """A user's collator, whose batches have what this task knows before a batch leaves the host."""
        return collate

    def tokenised(self, rows: Any, processing_class: Any, limit: int | None) -> Any:
        """A dataset whose rows are texts as one of tokens, no longer than `limit`, where this task knows how."""
        return rows

    def for_prediction(self, collate: Collate) -> Collate:
        """The collator for rows that are to be predicted."""
        return collate

    def targets(self, batch: Batch) -> Targets | None:
        """Which positions of the networks' [B, L, C] logits are items; None where every row of [B, C] is one."""
        return None

    @abstractmethod
    def count(self, batch: Batch) -> Tensor | int:
        """How many items a batch counts as: what a summed loss is divided by. Nothing is read back from a device."""

    def count_labels(self, batch: Batch) -> Tensor | int:
        """How many items of a batch have a label: what the summed cross-entropy is divided by."""
        return self.count(batch)

    @abstractmethod
    def count_samples(self, batch: Batch) -> Tensor | int:
        """How many samples of a batch have items: what an objective on samples is divided by. Nothing is read back."""

    @abstractmethod
    def items(self, batch: Batch, student: Tensor, teacher: Tensor, progress: float | None = 0.0) -> Items:
        """The items of a batch with `labels`, of which two networks gave these logits."""

    def each_item(
        self, batch: Batch, student: Tensor, teacher: Tensor, values_of: Callable[[Items], dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], tuple[Tensor, int]]:
        """What `values_of` gives for the items of a batch [N], and their `Items.rows`. It may see a few at a time."""
        items = self.items(batch, student, teacher)
        return values_of(items), items.rows

    def map_items(self, batch: Batch, student: Tensor, teacher: Tensor, progress: float | None = 0.0) -> MapItems:
        """`items` of maps, before they are resized. Where `by_map`."""
        raise NotImplementedError(f"{self.name} has no maps")

    def after_student(self, batch: Batch, output: Any) -> Batch:
        """The batch with what is known once the student has run on it: what the teacher gets, and items are made of."""
        return batch

    def teacher_reads(self, batch: Batch) -> bool:
        """Whether a batch has something for the teacher: of rows that are scored alone it may have nothing."""
        return True

    def for_teacher(self, batch: Batch) -> Batch:
        """What of a batch the teacher reads, by the names that networks take. ValueError where nothing is for it."""
        return batch

    def teacher_items(self, batch: Batch, teacher: Tensor) -> Items:
        """The items, with the teacher in both places: what is known of them without a student."""
        return self.items(batch, teacher, teacher)

    def predictions(self, batch: Batch, output: Any) -> tuple[Any, Any]:
        """Where it `predicts`: what a network found in a batch, and what is there, for Trainer's `compute_metrics`."""
        raise NotImplementedError

    @abstractmethod
    def check_logits(self, logits: Tensor) -> None:
        """Raise ValueError for logits that are not of this task's shape."""

    @abstractmethod
    def check_labels(self, labels: Tensor, classes: int | None) -> None:
        """Raise ValueError for labels that a loss would misread, by type and shape: nothing is read back."""

    def check_rows(self, rows: Sequence[Any], batch: Batch) -> None:  # noqa: B027 - classes need no place in a row
        """Raise ValueError for labels that stand elsewhere in `batch` than the `rows` that it was made of have them."""

    def check_values(self, labels: Tensor) -> None:  # noqa: B027 - most labels are integers, which mean what they are
        """Raise ValueError for float labels whose values mean nothing here. Waits for the labels' device."""

    def stand_ins(self, batch: Batch, network: nn.Module) -> Tensor:
        """Labels for rows that have none: which places are items, and nothing else. ValueError where labels say it."""
        raise ValueError(f"{self.name} needs labels: {self.without_labels}")

    def probe(self, batch: Batch) -> dict[str, Any]:
        """So much of a batch as the networks are tried on before training."""
        return dict(batch)

    @abstractmethod
    def sure_labels(self, network: nn.Module, batch: Batch) -> Tensor:
        """Labels that the network surely takes: the batch's own where they will do."""


def register_task(name: str) -> Callable[[Factory], Factory]:
    """Make a class a task by name, for `task=` and `--task`; see `register_objective`."""
    return registering(TASKS, "task", name)


@dataclass
class Selecting:
    """A collator for the rows' `columns`, their index and their labels, as `labels`; words and names stay behind.

    Raises ValueError for rows that it can make no batch of.
    """

    collate: Collate
    columns: Collection[str]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        chosen = [used(row, self.columns.__contains__) for row in rows]
        for name in LABELS:
            refuse_words(name, chosen[0].get(name))
        try:
            return dict(self.collate([{"labels" if k in LABELS else k: v for k, v in row.items()} for row in chosen]))
        except (ValueError, RuntimeError, TypeError, KeyError) as error:
            raise ValueError(
                f"the rows, which have {sorted(rows[0])}, cannot be made a batch of "
                f"{sorted(INPUTS.intersection(self.columns))} ({error}): tokenise the dataset, and pass the tokenizer "
                "as processing_class, or a data_collator of your own"
            ) from error


def refuse_bool(labels: Tensor) -> None:
    if labels.dtype == torch.bool:
        raise ValueError(
            f"labels of bool, shape {tuple(labels.shape)}: make them class ids, by argmax(-1) where they are one-hot"
        )
