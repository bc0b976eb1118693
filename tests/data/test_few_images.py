"""The part of a dataset that --max_train_images and --max_test_images use."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from hfkd.data.few_images import few_images
from hfkd.data.image_arguments import ImageDataArguments


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder of three classes: 12, 12 and 12 images to train on, 4 of each to test on."""
    root = tmp_path_factory.mktemp("sorted")
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("bear", "fox", "owl")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                picture = np.full((8, 8, 3), label * 80 + number, dtype=np.uint8)
                Image.fromarray(picture).save(root / split / name / f"{number:02}.png")
    return root


@pytest.mark.parametrize("resized_crop", [False, True])
def test_a_part_of_an_image_folder_is_of_all_classes(folder, resized_crop):
    data = ImageDataArguments(
        str(folder), image_size=8, max_train_images=9, max_test_images=6, resized_crop=resized_crop
    )
    train, test = data.load()
    assert [Counter(int(row["labels"]) for row in part) for part in (train, test)] == [
        {0: 3, 1: 3, 2: 3},
        {0: 2, 1: 2, 2: 2},
    ]


def test_other_datasets_give_their_first_rows():
    rows = Dataset.from_dict({"labels": [2, 0, 1, 1, 0, 2], "index": range(6)})
    assert few_images(rows, 4)["index"][:] == [0, 1, 2, 3]


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [2, 2, 1, 1, 0, 0], [0] * 6])
@pytest.mark.parametrize("count", [1, 3, 5, 6, 9, None])
def test_a_part_has_as_many_rows_as_asked_each_once(labels, count):
    found = few_images(Dataset.from_dict({"labels": labels, "index": range(6)}), count)["index"][:]
    assert len(found) == len(set(found)) == min(count or 6, 6)
    assert found == sorted(found)


def test_three_of_six_sorted_rows_are_one_of_each_class():
    found = few_images(Dataset.from_dict({"labels": [0, 0, 1, 1, 2, 2]}), 3)
    assert found["labels"][:] == [0, 1, 2]
