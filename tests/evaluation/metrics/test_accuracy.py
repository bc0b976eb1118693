import evaluate
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments

import hfkd.evaluation.metrics.accuracy
from hfkd.evaluation.metrics import Accuracy, default_metrics, item_accuracy, topk_predictions
from hfkd.tasks.base import TASKS

LOGITS, LABELS = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32), np.arange(200) % 12


def naive(logits, labels, k):
    return np.mean([label in np.argsort(-row)[:k] for row, label in zip(logits, labels, strict=True)])


def test_from_logits_and_from_ranked_ids():
    expected = {"accuracy": naive(LOGITS, LABELS, 1), "top5_accuracy": naive(LOGITS, LABELS, 5)}
    ranked = topk_predictions(torch.from_numpy(LOGITS), torch.from_numpy(LABELS))
    assert ranked.shape == (200, 5)
    assert item_accuracy(EvalPrediction(LOGITS, LABELS)) == pytest.approx(expected)
    assert item_accuracy(EvalPrediction(ranked.numpy(), LABELS)) == pytest.approx(expected)
    assert item_accuracy(EvalPrediction((LOGITS, "hidden states"), LABELS)) == pytest.approx(expected)


@pytest.mark.parametrize("make", [Accuracy, lambda: evaluate.load(hfkd.evaluation.metrics.accuracy.__file__)])
def test_metric_module(make):
    metric, expected = make(), item_accuracy(EvalPrediction(LOGITS, LABELS))
    ranked = topk_predictions(torch.from_numpy(LOGITS), torch.from_numpy(LABELS))
    assert metric.compute(predictions=LOGITS, references=LABELS) == pytest.approx(expected)
    assert metric.compute(predictions=ranked, references=LABELS, ranked=True) == pytest.approx(expected)
    ids = LOGITS.argmax(-1)
    assert metric.compute(predictions=ids, references=LABELS) == {"accuracy": pytest.approx(expected["accuracy"])}


def test_fewer_than_five_classes():
    logits, labels = LOGITS[:, :3], LABELS % 3
    scores = item_accuracy(EvalPrediction(logits, labels))
    assert topk_predictions(torch.from_numpy(logits), torch.from_numpy(labels)).shape == (200, 3)
    assert scores == {"accuracy": pytest.approx(naive(logits, labels, 1))}


def test_tokens_that_a_label_names_are_items_and_others_are_not():
    logits = LOGITS.reshape(20, 10, 12)
    labels = LABELS.reshape(20, 10).copy()
    labels[:, ::3] = -100
    known = labels.flatten() != -100
    expected = {
        "accuracy": naive(LOGITS[known], LABELS[known], 1),
        "top5_accuracy": naive(LOGITS[known], LABELS[known], 5),
    }
    ranked = topk_predictions(torch.from_numpy(logits), torch.from_numpy(labels))
    assert item_accuracy(EvalPrediction(logits, labels)) == pytest.approx(expected)
    assert item_accuracy(EvalPrediction(ranked.numpy(), labels)) == pytest.approx(expected)


def test_a_row_without_a_label_is_no_item():
    labels = np.where(np.arange(200) % 3 == 0, LABELS, -100)
    expected = item_accuracy(EvalPrediction(LOGITS[::3], LABELS[::3]))
    assert item_accuracy(EvalPrediction(LOGITS, labels)) == pytest.approx(expected)
    assert Accuracy().compute(predictions=LOGITS, references=labels) == pytest.approx(expected)
    for shape in ((200,), (20, 10)):
        assert item_accuracy(EvalPrediction(LOGITS.reshape(*shape, 12), np.full(shape, -100))) == {}


@pytest.mark.parametrize("labels", [np.eye(4, dtype=np.float32)[LABELS % 4], np.full((200, 4), -100)])
def test_labels_that_are_no_class_ids_are_refused(labels):
    ranked = topk_predictions(torch.from_numpy(LOGITS[:, :4]), None).numpy()
    with pytest.raises(ValueError, match="labels of shape \\(200, 4\\)"):
        item_accuracy(EvalPrediction(ranked, labels))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_each_task_has_metrics_or_is_left_to_its_loss(name):
    if TASKS[name].scored_by == "average_precision":
        return  # of boxes: see test_average_precision.py
    kept = default_metrics(TASKS[name].scored_by)
    in_place = ("image_classification", "sequence_classification", "token_classification", "masked_lm")
    assert set(kept) == ({"compute_metrics", "preprocess_logits_for_metrics"} if name in in_place else set())


def test_of_several_outputs_the_first_are_the_logits():
    logits = torch.from_numpy(LOGITS)
    assert torch.equal(topk_predictions((logits, logits[:, :2]), None), topk_predictions(logits, None))


@pytest.mark.parametrize(("predictions", "labels"), [(LOGITS[:3], LABELS), (LOGITS[:0], LABELS[:0])])
def test_shapes_that_do_not_fit_are_refused(predictions, labels):
    with pytest.raises(ValueError, match="pass one class id for each item"):
        item_accuracy(EvalPrediction(predictions, labels))


def test_in_the_trainer_only_the_ranked_ids_are_gathered(tmp_path):
    class Rows(Dataset):
        def __len__(self):
            return len(LABELS)

        def __getitem__(self, i):
            return {"pixel_values": torch.from_numpy(LOGITS[i]), "labels": torch.tensor(LABELS[i])}

    class Echo(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, pixel_values, labels=None):
            return {"loss": self.scale * 0, "logits": pixel_values * self.scale}

    seen = []

    def compute_metrics(prediction):
        seen.append(prediction.predictions.shape)
        return item_accuracy(prediction)

    trainer = Trainer(
        Echo(),
        TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", per_device_eval_batch_size=64),
        eval_dataset=Rows(),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=topk_predictions,
    )
    scores = trainer.evaluate()
    assert seen == [(200, 5)]
    assert scores["eval_accuracy"] == pytest.approx(naive(LOGITS, LABELS, 1))
    assert scores["eval_top5_accuracy"] == pytest.approx(naive(LOGITS, LABELS, 5))
