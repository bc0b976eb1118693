from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score
from task_toys import CLASSES, Pixels, masks
from torch.nn.functional import interpolate
from toys import arguments

from hfkd import DistillationTrainer

pytest.importorskip("torchmetrics")
from torchmetrics.functional.classification import multiclass_jaccard_index

from hfkd.evaluation.metrics.mean_iou import MeanIoU, pixel_predictions


def drawn(seed=0, classes=4):
    g = torch.Generator().manual_seed(seed)
    predicted, labels = torch.randint(0, classes, (2, 3, 5, 7), generator=g)
    labels[0, :2], labels[1, 0] = 255, -100
    return predicted, labels


def test_it_is_what_torchmetrics_and_scikit_learn_give():
    predicted, labels = drawn()
    found = MeanIoU(4, ["a", "b", "c", "d"])(SimpleNamespace(predictions=predicted.numpy(), label_ids=labels.numpy()))
    known = (labels != 255) & (labels != -100)
    y, p = labels[known], predicted[known]
    each = jaccard_score(y, p, average=None)
    assert [found[f"iou_{name}"] for name in "abcd"] == pytest.approx(each.tolist())
    assert found["mean_iou"] == pytest.approx(each.mean())
    assert found["mean_iou"] == pytest.approx(float(multiclass_jaccard_index(p, y, num_classes=4)))
    assert found["pixel_accuracy"] == pytest.approx(accuracy_score(y, p))


def test_batch_by_batch_is_all_at_once_and_it_starts_anew():
    predicted, labels = drawn()
    metric, whole = MeanIoU(4), MeanIoU(4)(SimpleNamespace(predictions=predicted, label_ids=labels))
    for _ in range(2):
        for start in (0, 1):
            part = SimpleNamespace(predictions=predicted[start : start + 1], label_ids=labels[start : start + 1])
            assert metric(part, compute_result=False) == {}
        last = SimpleNamespace(predictions=predicted[2:], label_ids=labels[2:])
        assert metric(last, compute_result=True) == whole


def test_a_class_that_is_nowhere_is_in_no_mean():
    labels = torch.tensor([[[0, 0, 1, 1]]])
    found = MeanIoU(3)(SimpleNamespace(predictions=torch.tensor([[[0, 1, 1, 1]]]), label_ids=labels))
    assert found["mean_iou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert [found[f"iou_{k}"] for k in range(3)] == pytest.approx([1 / 2, 2 / 3, float("nan")], nan_ok=True)


def test_images_without_masks_are_predicted_at_the_size_of_the_maps(tmp_path):
    args = arguments(tmp_path, task="semantic_segmentation", ce_weight=1.0, kd_weight=0.0)
    made = DistillationTrainer(
        Pixels(4), None, args, train_dataset=masks(2),
        compute_metrics=MeanIoU(CLASSES), preprocess_logits_for_metrics=pixel_predictions,
    )  # fmt: skip
    images = [{"pixel_values": row["pixel_values"]} for row in masks(3)]
    assert made.predict(images).predictions.shape == (3, 3, 5)


@pytest.mark.parametrize("which", ["predictions", "labels"])
def test_classes_that_are_not_counted_are_refused(which):
    """A prediction of class 3 where 0 is right would be counted as a 0 where 1 is right."""
    pixels = {"predictions": torch.tensor([[[0, 1, 2]]]), "label_ids": torch.tensor([[[0, 1, 2]]])}
    pixels["label_ids" if which == "labels" else which] = torch.tensor([[[0, 1, 3]]])
    with pytest.raises(ValueError, match=rf"MeanIoU\(3\) counts the classes 0 to 2, but the {which} have 3"):
        MeanIoU(3)(SimpleNamespace(**pixels))


def test_a_student_of_more_classes_is_refused_before_it_is_trained(tmp_path):
    args, rows = arguments(tmp_path, task="semantic_segmentation", ce_weight=1.0, kd_weight=0.0), masks(2)
    with pytest.raises(ValueError, match=rf"MeanIoU\({CLASSES - 1}\), but the student has {CLASSES} classes"):
        DistillationTrainer(Pixels(4), None, args, train_dataset=rows, compute_metrics=MeanIoU(CLASSES - 1))
    with pytest.raises(ValueError, match=r"MeanIoU\(3\) has 2 label_names"):
        MeanIoU(3, ["a", "b"])


@pytest.mark.parametrize("in_batches", [False, True])
def test_the_trainers_figure_is_that_of_the_same_predictions(tmp_path, in_batches):
    torch.manual_seed(0)
    student, rows = Pixels(4), masks(5)
    args = arguments(
        tmp_path, task="semantic_segmentation", ce_weight=1.0, kd_weight=0.0, batch_eval_metrics=in_batches,
        per_device_eval_batch_size=2,
    )  # fmt: skip
    made = DistillationTrainer(
        student, None, args, train_dataset=rows, eval_dataset=rows,
        compute_metrics=MeanIoU(CLASSES), preprocess_logits_for_metrics=pixel_predictions,
    )  # fmt: skip
    found = made.evaluate()
    with torch.no_grad():
        maps = student(torch.stack([row["pixel_values"] for row in rows]))
    predicted = interpolate(maps, (6, 9), mode="bilinear").argmax(1).numpy()
    labels = np.stack([row["labels"] for row in rows])
    known = (labels != 255) & (labels != -100)
    assert found["eval_mean_iou"] == pytest.approx(
        jaccard_score(
            labels[known], predicted[known], average="macro", labels=np.union1d(labels[known], predicted[known])
        )
    )
    assert found["eval_pixel_accuracy"] == pytest.approx((predicted == labels)[known].mean())
