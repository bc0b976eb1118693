"""Datasets that no network can be trained or scored on are refused by their first rows."""

import pytest
import torch
from datasets import Dataset
from toys import Rows, packed_images, stream_of

from hfkd.data.collate import ImageCollator
from hfkd.data.transforms import ImageTransform
from hfkd.tasks.image_classification import ImageClassification
from hfkd.training.validation.datasets import check_datasets

COLLATE, TASK = ImageCollator(), ImageClassification()


def test_good_datasets_pass():
    check_datasets({"train_dataset": Rows(), "eval_dataset": {"a": Rows(), "b": Rows()}}, COLLATE, TASK)
    check_datasets({"train_dataset": packed_images([0, 1]), "eval_dataset": None}, COLLATE, TASK)
    check_datasets({"train_dataset": stream_of([99])}, COLLATE, TASK)


def test_two_views_are_for_training():
    two = ImageTransform(augment=True, views=2)
    rows, clean = packed_images([0, 1]).with_transform(two), packed_images([0, 1]).with_transform(two.clean())
    check_datasets({"train_dataset": rows, "eval_dataset": {"clean": clean}}, COLLATE, TASK)
    with pytest.raises(ValueError, match="seen yields 2 views of each image"):
        check_datasets({"train_dataset": rows, "eval_dataset": {"clean": clean, "seen": rows}}, COLLATE, TASK)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train_dataset": Rows(0)}, "train_dataset is empty: there is nothing to train on"),
        ({"eval_dataset": Rows(0)}, "eval_dataset is empty: there is nothing to evaluate"),
        ({"eval_dataset": {"seen": Rows(), "unseen": Rows(0)}}, "unseen is empty: there is nothing to evaluate"),
        ({"train_dataset": Rows(), "eval_dataset": Dataset.from_dict({"image": [1]})}, "rows have no 'pixel_values'"),
        (
            {"train_dataset": Rows(), "eval_dataset": {"a": [{"pixel_values": torch.zeros(3, 8, 8)}]}},
            "the rows of a have no labels, but eval_loss is the cross-entropy on labels",
        ),
    ],
)
def test_a_dataset_that_cannot_be_used_is_said(data, message):
    with pytest.raises(ValueError, match=message):
        check_datasets(data, COLLATE, TASK)
