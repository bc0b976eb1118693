"""Tasks in which each row of a batch is one item: an image, a text, an audio clip.

B rows, V views of each image, C classes.
"""

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, default_data_collator
from transformers.image_processing_utils import BaseImageProcessor

from hfkd.data.collate import ImageCollator
from hfkd.data.labels import check_shares
from hfkd.losses.items import Items, image_items
from hfkd.models.calling import Call, bare
from hfkd.tasks.base import Batch, Collate, Selecting, Task, refuse_bool
from hfkd.utils.devices import device_of
from hfkd.utils.targets import IGNORED

INPUT_TAGS = {
    "pixel_values": "image-classification",
    "input_values": "audio-classification",
    "input_features": "audio-classification",
    "input_ids": "text-classification",
}


class PerRow(Task):
    """One label per row: softmax over C classes. In training a row with the label -100 has no label."""

    views = True
    lacks_labels = True
    scored_by: ClassVar[str | None] = "accuracy"

    def hub_tag(self, call: Call) -> str:
        names = (name for name in INPUT_TAGS if name != "pixel_values" and call.takes(name))
        return INPUT_TAGS.get("pixel_values" if call.takes_images else next(names, ""), self.pipeline_tag)

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        if call.takes_images:
            processor = processing_class if isinstance(processing_class, BaseImageProcessor) else None
            return ImageCollator(processor, columns)
        pad = default_data_collator if processing_class is None else DataCollatorWithPadding(processing_class)
        return Selecting(pad, columns)

    def count(self, batch: Batch) -> Tensor | int:
        return batch["labels"].shape[0]

    def count_labels(self, batch: Batch) -> Tensor | int:
        labels = batch["labels"]
        if self.complete or labels.is_floating_point():
            return self.count(batch)
        return (labels != IGNORED).sum()

    def count_samples(self, batch: Batch) -> Tensor | int:
        return batch["labels"].shape[0]

    def items(self, batch: Batch, student: Tensor, teacher: Tensor, progress: float | None = 0.0) -> Items:
        return image_items(student, teacher, batch["labels"], progress=progress, complete=self.complete)

    def stand_ins(self, batch: Batch, classes: int | None) -> Tensor:
        return torch.zeros(rows_of(batch), dtype=torch.long)

    def check_logits(self, logits: Tensor) -> None:
        if logits.ndim != 2:
            raise ValueError(
                f"the student's logits have shape {tuple(logits.shape)}, but {self.name} needs [batch, classes]: "
                f"use a classifier with one label for {self.item}, or set another task ('causal_lm' for a model "
                "that generates text)"
            )
        if logits.shape[-1] == 1:
            raise ValueError(
                "the student has a single logit, whose softmax is always 1, so that nothing would be learned: "
                "use num_labels=2 for two classes"
            )

    def check_labels(self, labels: Tensor, classes: int | None) -> None:
        """Labels must be integers [B], or, for mixed rows, floats [B, C] over `classes`."""
        shape, kind = tuple(labels.shape), str(labels.dtype).removeprefix("torch.")
        refuse_bool(labels)
        if labels.is_floating_point():
            if labels.ndim != 2:
                raise ValueError(
                    f"labels are of type {kind}, shape {shape}: class ids must be integers, and floats the soft "
                    f"labels of mixed images, shape [batch, {classes or 'classes'}]; convert class ids with int()"
                )
            if classes is not None and labels.shape[-1] != classes:
                raise ValueError(
                    f"mixed labels have {labels.shape[-1]} classes, but the student has {classes}: use the same "
                    "number for both"
                )
        elif labels.ndim != 1:
            raise ValueError(
                f"labels are of type {kind}, shape {shape}: class ids must have shape [batch], one number per "
                "row; use argmax(-1) for one-hot labels, squeeze(-1) for a last dimension of 1, or set "
                "task='multi_label_classification' if a row has any number of labels"
            )

    def check_values(self, labels: Tensor) -> None:
        check_shares(labels)

    def sure_labels(self, network: nn.Module, batch: Batch) -> Tensor:
        given = batch.get("labels")
        if given is not None and given.ndim == 1 and not given.is_floating_point():
            return given.long().clamp(min=0)  # -100: no label
        config: Any = bare(network).config
        return torch.arange(rows_of(batch), device=device_of(network)) % config.num_labels


def rows_of(batch: Batch) -> int:
    return len(next(value for value in batch.values() if isinstance(value, Tensor)))
