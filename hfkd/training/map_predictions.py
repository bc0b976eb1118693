"""Predictions for the pixels of images that differ in size between processes.

B images, C classes, H and W of the labels, h and w of a network's maps.
"""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hfkd.utils.targets import IGNORED


class OfOwnSize:
    """`own`, a `preprocess_logits_for_metrics`, called with the labels [B, H, W] of this process as they were.

    Trainer pads labels to the greatest height of all processes before it calls it: maps would be resized to that, other
    places than those of the labels. Widths it does not pad. Here labels, and what `own` makes of the maps, are padded
    in both directions, with -100. Without `own` maps are returned as they are, and must be of one size.
    """

    def __init__(self, own: Callable[..., Any] | None, accelerator: Accelerator) -> None:
        self.own, self.accelerator = own, accelerator
        self._labels: Tensor | None = None

    def padded_labels(self, labels: Any) -> Any:
        """What Trainer is to have of a batch's labels, before it calls this."""
        self._labels = labels if isinstance(labels, Tensor) else None
        return labels if self._labels is None else self._padded(labels)

    def __call__(self, logits: Any, labels: Any) -> Any:
        if self.own is not None:
            return self._padded(self.own(logits, labels if self._labels is None else self._labels))
        self._refuse_other_sizes(logits[0] if isinstance(logits, (tuple, list)) else logits)
        return logits

    def _padded(self, values: Any) -> Any:
        for side in (1, 2):
            values = self.accelerator.pad_across_processes(values, dim=side, pad_index=IGNORED)
        return values

    def _refuse_other_sizes(self, maps: Tensor) -> None:
        here = torch.tensor(maps.shape, device=maps.device)[None]
        sizes: Any = self.accelerator.gather(here)
        if len(sizes[:, 2:].unique(dim=0)) > 1:
            raise ValueError(
                f"the maps of several processes have the sizes {sizes[:, 2:].unique(dim=0).tolist()}, and cannot be "
                "gathered: pass preprocess_logits_for_metrics=pixel_predictions (hfkd.evaluation.metrics.mean_iou), "
                "evaluate on one process, or resize the images in the dataset"
            )
