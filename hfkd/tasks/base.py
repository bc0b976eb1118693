"""The base class of tasks, which interpret the outputs of a network's head.

B batch rows, L length, N items, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

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
ProblemType = Literal["single_label_classification", "multi_label_classification"]

TASKS: dict[str, Callable[[], "Task"]] = {}


class Task(ABC):
    """Maps the rows of a dataset to items and labels. Only this package depends on what an item is.

    A task's loss is the mean cross-entropy over its items; `proof.py` compares it with the loss that the networks
    compute.
    """

    pipeline_tag: ClassVar[str]  # its name on the Hub
    item: ClassVar[str]  # what one item is, in messages
    one_item_a_row: ClassVar[bool] = True
    problem_type: ClassVar[ProblemType | None] = None  # what a classifier's config calls it
    vocabulary: ClassVar[bool] = False  # classes are a tokenizer's tokens, else the dataset's classes
    mixes: ClassVar[bool] = False  # rows can be mixed (MixUp, CutMix), with soft labels
    views: ClassVar[bool] = False  # pixel_values with five dimensions are several views of each image
    class_ids: ClassVar[bool] = True  # labels are class ids; else 0 or 1 for each class
    ignores: ClassVar[tuple[int, ...]] = ()  # labels that mean "no label"
    lacks_labels: ClassVar[bool] = False  # training rows may have the label -100, and are only distilled
    relates: ClassVar[bool] = True  # all items have the same classes, so that items can be compared
    by_target: ClassVar[bool] = False  # supports chunked losses and caches over target tokens
    by_map: ClassVar[bool] = False  # items are pixels of maps, which can be processed in strips
    generates: ClassVar[bool] = False
    labels_to_networks: ClassVar[bool] = False  # decoders read them; networks then compute their own loss too
    without_labels: ClassVar[str] = "name the label column 'labels', or let the data_collator add 'labels'"
    scanned_items: ClassVar[int | None] = None  # how many items of a dataset a scan keeps; None: all
    by_share: ClassVar[bool] = False  # items are known only after the forward pass: all samples count equally
    own_rows: ClassVar[bool] = False  # the teacher reads other tokens than the student
    own_tokens: ClassVar[bool] = False  # those of its own tokenizer
    follows_student: ClassVar[bool] = False  # the teacher's inputs depend on the student's outputs
    predicts: ClassVar[bool] = False  # evaluation has predictions for a metric, but no loss
    normalises: ClassVar[bool] = False  # networks normalise and resize images themselves
    segmentation_stride: int | None = None
    complete: bool = True  # every training row has a label; False: some may be -100
    guessed: bool = False  # inferred from inputs, not from a network's class or the arguments
    scored_by: ClassVar[str | None] = None  # default metric (`hfkd.evaluation.metrics`); None: only the loss

    @property
    def needs_no_labels(self) -> bool:
        """Whether rows without labels can be distilled."""
        return type(self).stand_ins is not Task.stand_ins

    @property
    def name(self) -> str:
        return next(name for name, made in TASKS.items() if made is type(self))

    def configure(self, args: Any) -> None:
        """Apply the arguments of this task. Raises ValueError for arguments of another task."""
        if getattr(args, "segmentation_stride", None) is not None:
            raise ValueError(
                f"segmentation_stride={args.segmentation_stride} is only for semantic_segmentation, and the task "
                f"is {self.name}: leave it out"
            )

    def check_networks(  # noqa: B027 - most take any
        self, students: Sequence[nn.Module], teachers: Sequence[nn.Module], stored: bool
    ) -> None:
        """Raise ValueError for a network that does not suit the task; `stored`: the teacher is a stored one."""

    def check_loss(self, loss: Any) -> None:  # noqa: B027 - most take any
        """Raise ValueError for a slot of the `DistillationLoss` that does not suit this task."""

    def check_own_loss(self, network: nn.Module, batch: Batch) -> None:  # noqa: B027 - for models of transformers
        """Raise ValueError if the items differ from those of the network's own loss; called by `proof`."""

    def as_networks_have_it(self, network: nn.Module) -> AbstractContextManager["Task"]:
        """Context in which the network's own loss is the task's cross-entropy plus `added_loss`; yields the task."""
        return nullcontext(self)

    def given_besides(self, call: Call, batch: Batch) -> dict[str, Any]:
        """Further inputs of the student, needed to compute the additional terms of its own loss."""
        return {}

    def added_loss(self, call: Call, output: Any, batch: Batch) -> Tensor | None:
        """Terms that the student's own loss adds to the cross-entropy, one number for the batch; None: no terms."""
        return call.added_loss(output)

    def hub_tag(self, call: Call) -> str:
        """The pipeline tag of a network with these inputs."""
        return self.pipeline_tag

    @abstractmethod
    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        """The default collator. `columns`: those that the networks or the loss need."""

    def ready(self, collate: Collate) -> Collate:
        """Wrap a user's collator, to add to its batches what this task computes on the host."""
        return collate

    def tokenised(self, rows: Any, processing_class: Any, limit: int | None) -> Any:
        """Tokenise a dataset of texts, to at most `limit` tokens, if this task supports it."""
        return rows

    def for_prediction(self, collate: Collate) -> Collate:
        """The collator for prediction."""
        return collate

    def targets(self, batch: Batch) -> Targets | None:
        """The positions of the logits [B, L, C] that are items; None if every row of [B, C] is one."""
        return None

    @abstractmethod
    def count(self, batch: Batch) -> Tensor | int:
        """Number of items of a batch, by which a summed loss is divided. Must not synchronize with the device."""

    def count_labels(self, batch: Batch) -> Tensor | int:
        """Number of items of a batch with a label, by which the summed cross-entropy is divided."""
        return self.count(batch)

    @abstractmethod
    def count_samples(self, batch: Batch) -> Tensor | int:
        """Number of samples with items, by which an objective on samples is divided. Must not synchronize."""

    @abstractmethod
    def items(self, batch: Batch, student: Tensor, teacher: Tensor, progress: float | None = 0.0) -> Items:
        """The items of a batch with `labels`, from the logits of both networks."""

    def each_item(
        self, batch: Batch, student: Tensor, teacher: Tensor, values_of: Callable[[Items], dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], tuple[Tensor, int]]:
        """The results of `values_of` for a batch's items [N], and their `Items.rows`. It may be called on parts."""
        items = self.items(batch, student, teacher)
        return values_of(items), items.rows

    def map_items(self, batch: Batch, student: Tensor, teacher: Tensor, progress: float | None = 0.0) -> MapItems:
        """The items of maps, before these are resized, for tasks with `by_map`."""
        raise NotImplementedError(f"{self.name} has no maps")

    def decoder_mask(self, batch: Batch) -> Tensor | None:
        """The positions of an encoder-decoder's decoder that are not padding [B, L]; by default it reads the inputs."""
        given: Tensor | None = batch.get("decoder_attention_mask", batch.get("attention_mask"))
        return given

    def after_student(self, batch: Batch, output: Any) -> Batch:
        """The batch with what the student's forward pass adds, for the teacher and for `items`."""
        return batch

    def teacher_reads(self, batch: Batch) -> bool:
        """Whether a batch has inputs for the teacher, which batches for evaluation may lack."""
        return True

    def for_teacher(self, batch: Batch) -> Batch:
        """The teacher's inputs, under the names of the network's arguments. Raises ValueError if there are none."""
        return batch

    def teacher_items(self, batch: Batch, teacher: Tensor) -> Items:
        """The items with the teacher's logits for both networks, for use without a student."""
        return self.items(batch, teacher, teacher)

    def predictions(self, batch: Batch, output: Any) -> tuple[Any, Any]:
        """For tasks with `predicts`: predictions and references of a batch, for Trainer's `compute_metrics`."""
        raise NotImplementedError

    @abstractmethod
    def check_logits(self, logits: Tensor) -> None:
        """Raise ValueError for logits that do not have this task's shape."""

    @abstractmethod
    def check_labels(self, labels: Tensor, classes: int | None) -> None:
        """Raise ValueError for labels of a wrong type or shape. Must not synchronize with the device."""

    def check_rows(self, rows: Sequence[Any], batch: Batch) -> None:  # noqa: B027 - not for labels of whole rows
        """Raise ValueError if labels are at other positions in `batch` than in its `rows`."""

    def look_at_labels(self, student: nn.Module, batch: Batch) -> None:  # noqa: B027 - not for other labels than tokens
        """Warn of labels of the first rows that no student should learn."""

    def check_values(self, labels: Tensor) -> None:  # noqa: B027 - most labels are integers
        """Raise ValueError for float labels with invalid values. Synchronizes with the labels' device."""

    def stand_ins(self, batch: Batch, classes: int | None) -> Tensor:
        """Placeholder labels for rows without any, which only mark the items; classes: of the student, if known.

        Raises ValueError if items depend on labels.
        """
        raise ValueError(f"{self.name} needs labels: {self.without_labels}")

    def probe(self, batch: Batch) -> dict[str, Any]:
        """The part of a batch on which the networks are tried before training."""
        return dict(batch)

    @abstractmethod
    def sure_labels(self, network: nn.Module, batch: Batch) -> Tensor:
        """Labels that the network certainly accepts: the batch's own if possible."""


def register_task(name: str) -> Callable[[Factory], Factory]:
    """Register a class as a task by name, for `task=` and `--task`; see `register_objective`."""
    return registering(TASKS, "task", name)


@dataclass
class Selecting:
    """A collator that keeps the rows' `columns`, index and labels (as `labels`), and drops the others, such as text.

    Raises ValueError for rows that cannot be collated.
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
                f"the rows, with columns {sorted(rows[0])}, cannot be collated to a batch with "
                f"{sorted(INPUTS.intersection(self.columns))} ({error}): tokenise the dataset and pass the "
                "tokenizer as processing_class, or pass a data_collator"
            ) from error


def refuse_bool(labels: Tensor) -> None:
    if labels.dtype == torch.bool:
        raise ValueError(
            f"labels are of type bool, shape {tuple(labels.shape)}: convert them to class ids, with argmax(-1) if "
            "they are one-hot"
        )
