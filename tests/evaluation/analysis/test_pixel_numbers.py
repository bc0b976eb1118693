"""Numbers over the pixels of several images, against numbers known from how the maps were made."""

import math

import pytest
import torch
from torch.nn.functional import interpolate, kl_div

from hfkd.evaluation.analysis.pixels import PixelNumbers

pytest.importorskip("torchmetrics")


def maps(classes, scale=1.0):
    """Logits [B, 3, H, W] that choose these classes [B, H, W], by `scale`."""
    return scale * torch.nn.functional.one_hot(classes, 3).movedim(-1, 1).float()


def test_known_pixels_in_segments_of_the_teachers_entropy():
    """Ten columns, each less certain than the one before; the student is wrong in the last three."""
    labels = torch.zeros(2, 4, 10, dtype=torch.long)
    labels[:, 2:] = 1
    certainty = torch.arange(10, 0, -1).float()
    teacher = maps(labels) * certainty
    wrong = labels.clone()
    wrong[..., 7:] = 2
    student = maps(wrong)
    labels[0, 0] = 255  # ten pixels of one class, one in each column
    labels[1, 0] = -100
    numbers = PixelNumbers(["copy", "other"], 3, ["a", "b", "c"])
    for one in (slice(0, 1), slice(1, 2)):  # batches
        numbers.add(labels[one], teacher[one], {"copy": teacher[one], "other": student[one]})
    found = numbers.result()
    copy, other = found["students"]["copy"], found["students"]["other"]
    assert (found["images"], found["pixels"]) == (2, 60)
    assert (found["teacher"]["mean_iou"], found["teacher"]["pixel_accuracy"]) == (1, 1)
    assert math.isnan(found["teacher"]["iou_c"])
    assert (copy["agreement"], copy["mean_iou_gap"], copy["pixel_accuracy_gap"]) == (1, 0, 0)
    assert copy["kl"] == pytest.approx(0, abs=1e-6)
    assert (other["pixel_accuracy"], other["agreement"]) == pytest.approx((0.7, 0.7))
    ious = 0.7, 0.7, 0.0  # three in ten of a and of b are taken for c, which no label is
    assert [other[f"iou_{name}"] for name in "abc"] == pytest.approx(ious)
    assert other["mean_iou"] == pytest.approx(sum(ious) / 3)
    assert [one["pixels"] for one in other["by_teacher_entropy"]] == [6] * 10
    assert [one["gap"] for one in other["by_teacher_entropy"]] == [0] * 7 + [1] * 3
    values = [one["entropy"] for one in other["by_teacher_entropy"]]
    assert values == sorted(values)
    for key, column in (("kl_lowest_entropy", 0), ("kl_highest_entropy", 9)):
        p, q = (x[0, :, 3, column].log_softmax(0) for x in (teacher, student))
        assert other[key] == pytest.approx(kl_div(q, p, log_target=True, reduction="sum").item(), rel=1e-5)


def test_of_very_many_pixels_evenly_spread_ones_are_held(monkeypatch):
    """Those of a usual evaluation set took more than twenty gigabytes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (4, 20, 30), generator=generator)
    teacher, student = (torch.randn(4, 3, 20, 30, generator=generator) for _ in range(2))

    def result():
        numbers = PixelNumbers(["student"], 3)
        for k in range(4):
            one = slice(k, k + 1)
            numbers.add(labels[one], teacher[one], {"student": student[one]})
        return numbers.result()

    whole = result()
    monkeypatch.setattr("hfkd.teachers.sampled_items.MOST", 1000)
    some = result()
    mine, its = (found["students"]["student"] for found in (some, whole))
    assert sum(part["pixels"] for part in mine["by_teacher_entropy"]) == 600
    assert sum(part["pixels"] for part in its["by_teacher_entropy"]) == some["pixels"] == whole["pixels"] == 2400
    for name in ("mean_iou", "pixel_accuracy_gap"):
        assert mine[name] == its[name]
    for name in ("agreement", "entropy", "kl"):
        assert mine[name] != its[name] == pytest.approx(mine[name], rel=0.2)


def test_maps_are_compared_at_the_size_of_the_labels():
    small = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    large = interpolate(small, size=(8, 10), mode="bilinear", align_corners=False)
    numbers = PixelNumbers(["student"], 3, temperature=2.0)
    numbers.add(large.argmax(1), small, {"student": large})
    found = numbers.result()
    assert found["teacher"]["pixel_accuracy"] == 1
    assert found["students"]["student"]["kl"] == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_compared():
    labels, numbers = torch.zeros(1, 2, 2, dtype=torch.long), PixelNumbers(["student"], 3)
    good = maps(labels)
    with pytest.raises(ValueError, match="image 0 has the label 3, but the classes are 0 to 2"):
        numbers.add(labels + 3, good, {"student": good})
    with pytest.raises(ValueError, match="student gives NaN or infinity for image 0"):
        PixelNumbers(["student"], 3).add(labels, good, {"student": good * float("nan")})
    unlabelled = PixelNumbers(["student"], 3)
    unlabelled.add(labels + 255, good, {"student": good})
    with pytest.raises(ValueError, match="no pixel of these images has a label"):
        unlabelled.result()
