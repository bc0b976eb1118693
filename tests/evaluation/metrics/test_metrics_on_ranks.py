"""Metrics of torchmetrics get every rank's rows from Trainer, and are not to gather them once more."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics")
pytest.importorskip("pycocotools")

from hfkd.evaluation.metrics import AveragePrecision
from hfkd.evaluation.metrics.mean_iou import MeanIoU

BOX = np.array([[[0.0, 0.0, 4.0, 4.0]]])
ONE = {"boxes": BOX, "labels": np.ones((1, 1), dtype=np.int64)}
WAYS = {
    "masks": (lambda: MeanIoU(2), np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), "mean_iou", 1),
    "boxes": (
        AveragePrecision,
        ONE | {"scores": np.ones((1, 1))},
        ONE | {"iscrowd": np.zeros((1, 1), dtype=np.int64)},
        "ap",
        100,
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_metric_starts_no_collective(tmp_path, monkeypatch, way):
    """Counts are on the CPU, where NCCL cannot gather them; and a rank that evaluates alone would wait for ever."""
    make, predictions, labels, name, perfect = WAYS[way]
    group = f"file://{tmp_path / 'group'}"
    torch.distributed.init_process_group("gloo", init_method=group, rank=0, world_size=1)
    try:
        for collective in ("all_gather", "all_reduce", "barrier", "broadcast"):
            monkeypatch.setattr(torch.distributed, collective, lambda *_, **__: pytest.fail("a collective"))
        result = make()(SimpleNamespace(predictions=predictions, label_ids=labels))
    finally:
        monkeypatch.undo()
        torch.distributed.destroy_process_group()
    assert result[name] == pytest.approx(perfect)
