"""hfkd's metrics are the same in whichever way Trainer hands over predictions, and of one evaluation only."""

import pytest
import torch
from detection_toys import boxed, detector
from largest_tensor import LargestTensor
from task_toys import CLASSES, Pixels, bert, masked
from task_toys import padded as padded_texts
from torch import nn
from torch.utils.data import DataLoader
from toys import Net, Rows, arguments
from transformers import BertForMaskedLM, default_data_collator

from hfkd import DistillationTrainer
from hfkd.evaluation.metrics import item_accuracy, topk_predictions
from hfkd.evaluation.metrics.mean_iou import MeanIoU, pixel_predictions

ALONE = {"ce_weight": 1.0, "kd_weight": 0.0}
WAYS = {
    "at once": {},
    "each batch": {"batch_eval_metrics": True},
    "a list of batches": {"eval_do_concat_batches": False},
    "on the host in between": {"eval_accumulation_steps": 1},
}
ACCURACY = {"compute_metrics": item_accuracy, "preprocess_logits_for_metrics": topk_predictions}
MASKS = {"compute_metrics": MeanIoU(CLASSES), "preprocess_logits_for_metrics": pixel_predictions}


def padded(rows):
    """Padded to the largest of the batch, so that batches have several sizes."""
    high, wide = (max(row["labels"].shape[k] for row in rows) for k in (0, 1))
    made = []
    for row in rows:
        more = (0, wide - row["labels"].shape[1], 0, high - row["labels"].shape[0])
        fill = {"pixel_values": 0, "labels": 255}
        made.append({name: nn.functional.pad(row[name], more, value=value) for name, value in fill.items()})
    return default_data_collator(made)


def ragged():
    g = torch.Generator().manual_seed(0)
    sizes = ((6, 9), (6, 12), (8, 12))
    return [
        {"pixel_values": torch.randn(3, *size, generator=g), "labels": torch.randint(0, CLASSES, size, generator=g)}
        for size in sizes
    ]


def of_images(folder, **keywords):
    return DistillationTrainer(Net(), None, arguments(folder, **ALONE, **keywords), eval_dataset=Rows(13))


def of_images_given(folder, **keywords):
    return DistillationTrainer(Net(), None, arguments(folder, **ALONE, **keywords), eval_dataset=Rows(13), **ACCURACY)


def of_masks(folder, **keywords):
    torch.manual_seed(0)
    args = arguments(folder, task="semantic_segmentation", per_device_eval_batch_size=1, **ALONE, **keywords)
    return DistillationTrainer(Pixels(4), None, args, eval_dataset=ragged(), data_collator=padded, **MASKS)


def of_boxes(folder, **keywords):
    args = arguments(folder, per_device_eval_batch_size=3, **ALONE, **keywords)
    return DistillationTrainer(detector(sharp=5.0), None, args, eval_dataset=boxed())


KINDS = {
    "accuracy": (of_images, ("accuracy", "top5_accuracy")),
    "accuracy that is given": (of_images_given, ("accuracy", "top5_accuracy")),
    "masks of several sizes": (of_masks, ("mean_iou", "pixel_accuracy", "iou_0")),
    "boxes": (of_boxes, ("ap", "ap50")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_do_not_depend_on_how_trainer_hands_over_predictions(tmp_path, kind):
    build, names = KINDS[kind]
    scores = {way: build(tmp_path / str(n), **settings).evaluate() for n, (way, settings) in enumerate(WAYS.items())}
    expected = {name: scores["at once"][f"eval_{name}"] for name in names}
    for found in scores.values():
        assert {name: found[f"eval_{name}"] for name in names} == expected


@pytest.mark.parametrize("way", ["at once", "each batch"])
def test_predict_scores_and_returns_what_trainer_does(tmp_path, way):
    for build, width in ((of_images, 5), (of_images_given, 5)):
        made = build(tmp_path / build.__name__, **WAYS[way])
        found = made.predict(made.eval_dataset)
        assert found.metrics["test_accuracy"] == made.evaluate()["eval_accuracy"]
        assert found.predictions.shape == (13, width)
        assert found.predictions.dtype.kind == ("f" if build is of_images else "i")


@pytest.mark.parametrize("given", [{}, ACCURACY])
def test_an_evaluation_of_tokens_keeps_no_predictions(tmp_path, given):
    """For a million rows they took tens of gigabytes on the device, where plain Trainer has the loss alone."""
    args = arguments(tmp_path, per_device_eval_batch_size=2, **ALONE)
    rows, student = masked(8), bert(BertForMaskedLM)(8)
    made = DistillationTrainer(student, None, args, eval_dataset=rows, data_collator=padded_texts, **given)
    found, largest = [], []
    for times in (1, 8):
        with LargestTensor() as tensor:
            found.append(made.evaluate(rows * times))
        largest.append(tensor.numbers)
    assert largest[0] == largest[1]
    for name in ("eval_accuracy", "eval_top5_accuracy"):
        assert 0 < found[0][name] == pytest.approx(found[1][name])
    assert made.predict(rows * 2).predictions.shape[0] == 16


def test_several_evaluation_sets_are_scored_apart(tmp_path):
    made = of_masks(tmp_path)
    whole = made.evaluate()["eval_mean_iou"]
    found = made.evaluate({"all": ragged(), "first": ragged()[:1]})
    assert found["eval_all_mean_iou"] == whole != found["eval_first_mean_iou"]


def test_what_an_interrupted_evaluation_left_does_not_count(tmp_path):
    class Stops(list):
        def __getitem__(self, i):
            if i == 2:
                raise KeyboardInterrupt
            return super().__getitem__(i)

    made = of_masks(tmp_path)
    whole = made.evaluate()["eval_mean_iou"]
    with pytest.raises(KeyboardInterrupt):
        made.evaluate(Stops(ragged()))
    assert made.evaluate()["eval_mean_iou"] == whole


def test_an_evaluation_loader_of_ones_own_is_scored_in_batches(tmp_path):
    """accelerate, which has not prepared it, does not know its last batch."""

    class Own(DistillationTrainer):
        def get_eval_dataloader(self, eval_dataset=None):
            return DataLoader(Rows(13), batch_size=4, collate_fn=default_data_collator)

    args = {**ALONE, "batch_eval_metrics": True, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}
    made = Own(Net(), None, arguments(tmp_path, **args), train_dataset=Rows(16), eval_dataset=Rows(13))
    made.train()
    inside = next(entry for entry in made.state.log_history if "eval_accuracy" in entry)
    assert inside["eval_accuracy"] == made.evaluate()["eval_accuracy"]


class Features(Net):
    """Returns its features before its logits."""

    def forward(self, x):
        features = torch.relu(self.conv(x)).mean((2, 3))
        return {"features": features, "logits": self.head(features)}


def test_the_accuracy_is_that_of_the_logits_whatever_a_network_returns_first(tmp_path):
    for name, more in (("default", {}), ("given", ACCURACY)):
        plain, both = (
            DistillationTrainer(net, None, arguments(tmp_path / name, **ALONE), eval_dataset=Rows(13), **more)
            for net in (Net(), Features())
        )
        assert both.evaluate()["eval_accuracy"] == plain.evaluate()["eval_accuracy"]
        assert both.predict(Rows(13)).metrics["test_accuracy"] == plain.predict(Rows(13)).metrics["test_accuracy"]


def test_a_metric_of_ones_own_gets_the_outputs_in_their_order(tmp_path):
    seen = {}

    def metrics(prediction):
        seen["widths"] = [values.shape[-1] for values in prediction.predictions]
        return {}

    DistillationTrainer(
        Features(), None, arguments(tmp_path, **ALONE), eval_dataset=Rows(13), compute_metrics=metrics
    ).evaluate()
    assert seen == {"widths": [4, 5]}
