"""Rows are known again: in another order, or with other pixels or labels, they are others; a random crop is none."""

import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import Subset
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.training.data_fingerprint import comparable, data_hash


class Changed(Rows):
    """The rows of `Rows` with one of their fields made by a function of row number and value."""

    def __init__(self, field, change, n=32):
        super().__init__(n)
        self.field, self.change = field, change

    def __getitem__(self, i):
        row = super().__getitem__(i)
        return row | {self.field: self.change(i, row[self.field])}


def test_a_sample_of_a_plain_dataset_is_stated_and_the_same_each_time():
    assert data_hash(Rows(61)).startswith("sample of 32 rows: ")
    assert data_hash(Rows(5)).startswith("sample of 5 rows: ")
    assert data_hash(Rows(61)) == data_hash(Rows(61))


@pytest.mark.parametrize(
    "other",
    [
        Rows(61, seed=1),
        Subset(Rows(61), torch.randperm(61, generator=torch.Generator().manual_seed(0)).tolist()),
        Changed("labels", lambda i, label: (label + 1) % 5, 61),
        Changed("pixel_values", lambda i, x: x * 1.0001, 61),
        Changed("pixel_values", lambda i, x: x.double(), 61),
    ],
    ids=["images", "order", "labels", "pixels", "kind of number"],
)
def test_other_rows_have_another_hash(other):
    assert data_hash(other) != data_hash(Rows(61))


def test_what_is_random_is_left_out_and_what_is_not_is_compared():
    def noisy(seed):
        return Changed("pixel_values", lambda i, x: x + torch.rand(()) + seed)

    assert data_hash(noisy(0)) == data_hash(noisy(1))
    labels = Changed("labels", lambda i, label: (label + 1) % 5)
    labels.images = labels.images + torch.rand(())
    assert data_hash(labels) != data_hash(noisy(0))


@pytest.mark.parametrize("own", [False, True])
def test_what_is_random_now_and_then_is_left_out_too(own):
    """A flip by chance leaves half of the images as they were, in each process others."""

    def flipping(seed, change=0):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed) if own else None
        flip = lambda i, x: x.flip(-1) if torch.rand((), generator=generator) < 0.5 else x  # noqa: E731
        rows = Changed("pixel_values", flip)
        rows.labels = (rows.labels + change) % 5
        return data_hash(rows)

    assert len({flipping(seed) for seed in range(5)}) == 1
    assert flipping(0) != flipping(0, change=1)


def test_what_is_random_in_few_rows_is_the_same_in_each_process():
    """Two readings seldom tell an augmentation of one image in fifty."""
    rows = Changed("pixel_values", lambda i, x: x.flip(-1) if torch.rand(()) < 0.02 else x)
    hashes = set()
    for seed in range(5):
        torch.manual_seed(seed)
        hashes.add(data_hash(rows))
    assert len(hashes) == 1


def test_looking_draws_no_random_numbers():
    torch.manual_seed(0)
    data_hash(Changed("pixel_values", lambda i, x: x + torch.rand(())))
    drawn = torch.rand(())
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(3), np.ones(3)),
        (Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (1, 0, 0))),
        ("a text", "another"),
        ([1, [2, 3]], [1, [2, 4]]),
        ({"a": 1}, {"a": 2}),
        (np.float32(1), np.float32(2)),
        (np.array(["a", "b"], object), np.array(["a", "c"], object)),
        (b"bytes", b"other"),
        (None, 0),
    ],
)
def test_values_of_any_kind(one, other):
    hashes = [data_hash([{"x": value, "labels": 0}] * 3) for value in (one, one, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_pairs_are_rows_too():
    assert data_hash([(torch.zeros(2), 0), (torch.ones(2), 1)]) != data_hash([(torch.zeros(2), 0), (torch.ones(2), 2)])


def test_hashes_of_different_kinds_are_not_compared():
    whole = Dataset.from_dict({"labels": [0, 1]})
    assert not data_hash(whole).startswith("sample")
    assert not comparable(data_hash(whole), data_hash([{"labels": 0}, {"labels": 1}]))
    assert comparable(data_hash(Rows(61)), data_hash(Rows(61, seed=2)))


class Less:
    def __init__(self, mean):
        self.mean = mean

    def __call__(self, rows):
        noise = [torch.rand(()).item() for _ in rows["x"]]
        return {"x": [x - self.mean for x in rows["x"]], "labels": rows["labels"], "noise": noise}


def test_a_transform_of_somebodys_own_is_part_of_the_rows():
    rows = Dataset.from_dict({"x": [1.0, 2.0, 3.0], "labels": [0, 1, 0]})
    one, again, other = (data_hash(rows.with_transform(Less(mean))) for mean in (0.0, 0.0, 0.5))
    assert one == again != other
    assert comparable(one, other)
    assert not comparable(one, data_hash(rows))


def test_a_stream_has_none():
    assert data_hash(Dataset.from_dict({"labels": [0, 1]}).to_iterable_dataset()) is None
    assert data_hash(None) is None


def test_a_run_is_not_resumed_with_other_labels_of_the_same_images(tmp_path):
    def make(rows):
        args = arguments(tmp_path, save_strategy="steps", save_steps=1, max_steps=2)
        return DistillationTrainer(Net(), teacher(), args, train_dataset=rows)

    make(Rows()).train()
    make(Rows()).train(resume_from_checkpoint=True)
    with pytest.raises(
        ValueError, match="it was trained on as many rows, but with other contents or labels; choose another"
    ):
        make(Changed("labels", lambda i, label: (label + 1) % 5))


@pytest.mark.parametrize("columns", [("image", "label"), ("image",)])
def test_pictures_in_files_are_their_names_and_sizes(tmp_path, columns):
    """A folder that is copied to another machine is the same data, and other pictures under the same names are not."""

    def rows(folder):
        files = [str(file) for file in sorted((tmp_path / folder).rglob("*.png"))]
        stored = {"image": [{"bytes": None, "path": file} for file in files], "label": list(range(len(files)))}
        features = Features({"image": ImageFeature(decode=False), "label": Value("int64")})
        return Dataset.from_dict(stored, features).select_columns(list(columns))

    for number, place in enumerate(("a/0", "a/1", "b/0")):
        file = tmp_path / "here" / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8 + number)).save(file)
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "images")
    before = data_hash(rows("here"))
    assert before.startswith("all rows, and the names and sizes of their files: ")
    assert data_hash(rows("there")) == before
    Image.new("RGB", (80, 80)).save(tmp_path / "here/a/1.png")
    assert data_hash(rows("here")) != before
    (tmp_path / "there/images/a/1.png").rename(tmp_path / "there/images/a/2.png")
    assert data_hash(rows("there")) != before
