"""COCO's average precision of boxes for Trainer, with torchmetrics and pycocotools.

B images, D detections and G boxes of an image.
"""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from hfkd.evaluation.metrics.running import Running

NEEDED = ("torchmetrics", "pycocotools")


class AveragePrecision(Running):
    """For Trainer's `compute_metrics`: `ap`, `ap50`, `ap75` of all images, from 0 to 100 as papers print them.

    torchmetrics' MeanAveragePrecision with pycocotools: AP at IoU 0.50 to 0.95, at 0.50 and at 0.75, over all areas,
    with at most 100 detections per image; crowd boxes are ignored. Predictions have boxes [B, D, 4], scores and labels
    [B, D]; references have boxes [B, G, 4], labels and iscrowd [B, G]; labels below 1 are padding. NaN if no
    image has a box that counts.
    """

    def __init__(self) -> None:
        super().__init__()
        missing = [name for name in NEEDED if find_spec(name) is None]
        if missing:
            raise ImportError(
                f"average precision needs {missing[0]}, which is not installed: pip install 'hfkd[detect]'"
            )
        from torchmetrics.detection import MeanAveragePrecision

        # No sync: Trainer has gathered, and NCCL takes no tensors of the CPU.
        self.metric = MeanAveragePrecision("xyxy", "bbox", backend="pycocotools", sync_on_compute=False)
        self.metric.warn_on_many_detections = False

    def add(self, predictions: Any, labels: Any) -> None:
        self.metric.update(_of_images(predictions), _of_images(labels))

    def result(self) -> dict[str, float]:
        values = self.metric.compute()
        self.reset()
        names = {"ap": "map", "ap50": "map_50", "ap75": "map_75"}
        scores = {name: float(values[its]) for name, its in names.items()}
        return {name: 100 * score if score >= 0 else math.nan for name, score in scores.items()}  # -1: no box

    def reset(self) -> None:
        self.metric.reset()


def _of_images(padded: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    columns = {name: torch.as_tensor(values).cpu() for name, values in padded.items()}
    there = columns["labels"] > 0
    return [{name: values[i][there[i]] for name, values in columns.items()} for i in range(len(there))]
