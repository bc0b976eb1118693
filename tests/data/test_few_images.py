"""The part of a dataset that --max_train_images and --max_test_images use."""

import shutil
from collections import Counter

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from PIL import Image

from hfkd.data.few_images import few_images, warn_of_sorted_stream
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


@pytest.mark.parametrize("order", [[2, 0, 3, 1], [1, 0, 2, 3, 0, 1, 3, 2]], ids=["by class", "in blocks"])
def test_classes_in_any_other_order_are_all_there_too(order):
    labels = np.repeat(order, 50)
    assert Counter(few_images(Dataset.from_dict({"labels": labels}), 40)["labels"]) == dict.fromkeys(range(4), 10)


def test_random_rows_are_the_first_ones():
    labels = np.random.default_rng(0).integers(0, 4, 200)
    rows = Dataset.from_dict({"labels": labels, "index": range(200)})
    assert few_images(rows, 40)["index"][:] == list(range(40))


@pytest.mark.parametrize("resized_crop", [False, True])
def test_classes_without_a_training_image_are_warned_of(folder, tmp_path, resized_crop, caplog):
    load = {"image_size": 8, "resized_crop": resized_crop}
    ImageDataArguments(str(folder), **load).load()
    assert not caplog.records
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "test" / "fox").rename(tmp_path / "data" / "test" / "foxes")
    ImageDataArguments(str(tmp_path / "data"), **load).load()
    assert "no training images, of the classes ['foxes']" in caplog.text


# ---- streams ---------------------------------------------------------------------------------------------------------


def streamed(folder, **settings):
    return ImageDataArguments(str(folder), image_size=8, resized_crop=True, streaming=True, **settings).load()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_test_images": 6}, "max_test_images=6"),
        ({"max_train_images": 30}, "max_train_images=30"),
        ({"shuffle_buffer": 20}, "shuffle_buffer=20"),
    ],
)
def test_parts_of_a_stream_that_is_sorted_by_class_are_warned_of(folder, settings, said, caplog):
    streamed(folder, **settings)
    (message,) = (record.getMessage() for record in caplog.records)
    assert f"{said} images of a stream have few of its 3 classes" in message


def test_parts_of_a_stream_with_all_classes_are_not(folder, caplog):
    streamed(folder, max_train_images=36, max_test_images=12)
    warn_of_sorted_stream(stream_of([2, 0, 1] * 40), {"shuffle_buffer": 10})
    warn_of_sorted_stream(stream_of([0, 1, 2] * 40), {"max_train_images": 4})
    warn_of_sorted_stream(stream_of([0] * 30 + [1] * 30 + [2] * 30), {"shuffle_buffer": 90})
    assert not caplog.records


def stream_of(labels):
    features = Features({"labels": ClassLabel(names=["bear", "fox", "owl"])})
    return Dataset.from_dict({"labels": labels}, features).to_iterable_dataset()
