"""Mean IoU, IoU of each class and pixel accuracy for Trainer, with torchmetrics.

B images, C classes, H and W of the labels, h and w of the networks' maps.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from hfkd.evaluation.metrics.running import Running
from hfkd.losses.functional import interpolated
from hfkd.utils.targets import IGNORED

UNLABELLED = 255


def pixel_predictions(logits: Tensor | tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
    """For Trainer's `preprocess_logits_for_metrics`: maps [B, C, h, w] -> classes [B, H, W], at the labels' size.

    Without labels (`predict`) the classes are at the size of the maps [B, h, w]. Of several outputs (with an auxiliary
    head) the first is used.
    """
    maps = logits[0] if isinstance(logits, (tuple, list)) else logits
    size = (maps if labels is None else labels).shape[-2:]
    # One image at a time: the logits of all pixels take much memory. int32 is the smallest type for more than 256
    # classes that can be gathered from several processes.
    return torch.cat([interpolated(one, size).argmax(1).to(torch.int32) for one in maps.split(1)])


class MeanIoU(Running):
    """For Trainer's `compute_metrics`: `mean_iou`, `pixel_accuracy`, `iou_NAME`.

    torchmetrics' MulticlassJaccardIndex and MulticlassAccuracy over all pixels whose label is not 255 or -100; a class
    that occurs neither in labels nor in predictions is NaN, and left out of means. Only [C, C] counts are stored.
    """

    in_batches = True  # maps of all images are large, and may have several sizes

    def __init__(self, num_classes: int, label_names: Sequence[str] | None = None) -> None:
        super().__init__()
        if find_spec("torchmetrics") is None:
            raise ImportError("mean IoU needs torchmetrics, which is not installed: pip install 'hfkd[segmentation]'")
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

        known: dict[str, Any] = {"num_classes": num_classes, "ignore_index": UNLABELLED, "validate_args": False}
        known["sync_on_compute"] = False  # Trainer has gathered, and NCCL takes no tensors of the CPU
        self.names = [str(name) for name in label_names or range(num_classes)]
        if len(self.names) != num_classes:
            raise ValueError(f"MeanIoU({num_classes}) has {len(self.names)} label_names: pass one for each class")
        self.metrics = MetricCollection(
            {
                "mean_iou": MulticlassJaccardIndex(**known, average="macro"),
                "iou": MulticlassJaccardIndex(**known, average="none", zero_division=float("nan")),
                "pixel_accuracy": MulticlassAccuracy(**known, average="micro"),
            }
        )

    def add(self, predictions: Any, labels: Any) -> None:
        """Add predicted classes [B, H, W] and labels to the counts."""
        predicted, labels = (torch.as_tensor(x).long().cpu() for x in (predictions, labels))
        labels = labels.masked_fill(labels == IGNORED, UNLABELLED)
        known = labels != UNLABELLED
        for name, values in (("predictions", predicted), ("labels", labels)):
            self._refuse_others(name, values[known])
        self.metrics.update(predicted, labels)

    def check_classes(self, classes: int) -> None:
        """Raise ValueError for a network of more classes than are counted."""
        if classes > len(self.names):
            raise ValueError(
                f"compute_metrics is MeanIoU({len(self.names)}), but the student has {classes} classes, whose "
                f"predictions would be counted as other classes: pass MeanIoU({classes})"
            )

    def _refuse_others(self, name: str, values: Tensor) -> None:
        """Raise ValueError for a class that is not counted: torchmetrics would count it as another one."""
        classes = len(self.names)
        wrong = values[(values < 0) | (values >= classes)]
        if len(wrong):
            raise ValueError(
                f"MeanIoU({classes}) counts the classes 0 to {classes - 1}, but the {name} have {int(wrong[0])}: pass "
                f"the number of classes of the network, and {UNLABELLED} or {IGNORED} for pixels without a label"
            )

    def result(self) -> dict[str, float]:
        found = self.metrics.compute()
        self.reset()
        each = {f"iou_{name}": value for name, value in zip(self.names, found.pop("iou").tolist(), strict=True)}
        return {name: float(value) for name, value in found.items()} | each

    def reset(self) -> None:
        self.metrics.reset()
