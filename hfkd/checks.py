"""What can be known to be wrong before the first step is said before anything is written."""

from collections.abc import Callable, Mapping, Sized
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedConfig

from hfkd.data.collate import views_as_rows
from hfkd.data.epochs import image_transform
from hfkd.models.calling import Call
from hfkd.teachers import LiveTeacher

Collate = Callable[[list[Any]], dict[str, Tensor]]
PROBED_ROWS, PROBED_TOKENS = 2, 8  # enough to see shapes and NaN, little enough for a large model on a CPU


def check_datasets(datasets: Mapping[str, Any], collate: Collate) -> None:
    """Raise ValueError for a dataset that is empty or whose first row cannot become a batch.

    Or that shows several views of the images to be scored.
    """
    for name, dataset in datasets.items():
        for part, rows in dataset.items() if isinstance(dataset, dict) else [(name, dataset)]:
            if not _map_style(rows):
                continue
            if len(rows) == 0:
                raise ValueError(f"{part} is empty: there is nothing to {'learn from' if 'train' in name else 'score'}")
            images = collate([rows[0]]).get("pixel_values")
            if name != "train_dataset" and images is not None and images.ndim == 5:
                raise ValueError(
                    f"{part} gives {images.shape[1]} views of each image, and evaluation scores one: give it the "
                    "transform's clean()"
                )


@torch.no_grad()
def check_networks(
    student: nn.Module, call: Call, teacher: LiveTeacher | None, dataset: Any, collate: Collate
) -> int | None:
    """Run both networks on the first rows: same classes, finite teacher, labels within range. ValueError otherwise.

    Returns the number of classes; None where the rows cannot be looked at without spending them.
    """
    if not _map_style(dataset):
        return None
    batch = views_as_rows(collate([dataset[i] for i in range(min(PROBED_ROWS, len(dataset)))]))
    if call.takes_tokens:
        for network in (student, *(teacher.networks if teacher else ())):
            _check_positions(network, dataset)
        batch = {k: v[:, :PROBED_TOKENS] if isinstance(v, Tensor) and v.ndim > 1 else v for k, v in batch.items()}
    modes = [(module, module.training) for module in student.modules()]
    try:
        classes = call(student.eval(), _on(student, batch)).shape[-1]
    finally:
        for module, mode in modes:  # each its own: a student may keep frozen batch norms in eval
            module.training = mode
    if not call.takes_tokens:
        _check_labels(dataset, batch["labels"], classes)
    if teacher is None:
        return classes
    taught = teacher(**_on(teacher, batch))
    if taught.shape[-1] != classes and not call.takes_tokens:  # vocabularies are compared by hfkd.vocabulary
        raise ValueError(
            f"the teacher gives {taught.shape[-1]} classes and the student {classes}: logit distillation compares "
            "them one by one; build the student with the teacher's number of labels"
        )
    if not torch.isfinite(taught).all():
        raise ValueError("the teacher's logits are NaN or infinite on the first training rows: check its checkpoint")
    return classes


def _check_positions(network: nn.Module, dataset: Any) -> None:
    """No row of `tokenize_dataset` may be longer than what the network says it can take."""
    config = getattr(network, "config", None)
    if not isinstance(config, PreTrainedConfig):
        return
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None or not isinstance(dataset, Dataset) or "length" not in dataset.column_names:
        return
    longest = int(np.max(dataset.with_format("numpy")["length"][:]))
    if longest > limit:
        raise ValueError(
            f"the longest training row has {longest} tokens, but {type(network).__name__} has {limit} positions: lower "
            f"max_length to {limit}"
        )


def _check_labels(dataset: Any, probed: Tensor, classes: int) -> None:
    if probed.is_floating_point():  # mixed labels: a distribution over the classes
        if probed.shape[-1] != classes:
            raise ValueError(
                f"mixed labels over {probed.shape[-1]} classes, but the student has {classes}: give both as many"
            )
        return
    # All labels where the column is what a batch gets: a transform that is not ours may map them.
    stored = isinstance(dataset, Dataset) and "labels" in dataset.column_names
    whole = stored and (dataset.format["type"] != "custom" or image_transform(dataset) is not None)
    labels = torch.as_tensor(dataset.with_format("numpy")["labels"][:]) if whole else probed
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels run from {low} to {high}, but the student has {classes} classes (0 to {classes - 1}): "
            "give it more labels, or choose another label column"
        )


def _map_style(dataset: Any) -> bool:
    return (
        dataset is not None and isinstance(dataset, Sized) and not isinstance(dataset, torch.utils.data.IterableDataset)
    )


def _on(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    parameter = next(model.parameters(), None)
    return batch if parameter is None else {k: v.to(parameter.device) for k, v in batch.items()}
