"""Views and masks of each epoch, whatever a training set is wrapped in."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from text_toys import tokenizer
from torch.utils.data import ConcatDataset, StackDataset, Subset
from torchvision.transforms import v2
from toys import Net, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.data import ImageTransform
from hfkd.data.collate import ImageCollator
from hfkd.data.epochs import ImageStream, set_epoch_of
from hfkd.data.images import decode
from hfkd.data.large_images import LargeImageTransform
from hfkd.data.masking import TokenMasking
from hfkd.data.resident import resident
from hfkd.training.data_fingerprint import data_hash
from hfkd.training.validation.random_evaluation import warn_of_random_evaluation

COUNT = 12


class Held(torch.utils.data.Dataset):
    """A user's own dataset around another."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


WRAPPERS = {
    "itself": lambda rows: rows,
    "Subset": lambda rows: Subset(rows, range(COUNT)),
    "ConcatDataset": lambda rows: ConcatDataset([rows.select(range(5)), rows.select(range(5, COUNT))]),
    "a Subset of a Subset": lambda rows: Subset(Subset(rows, range(COUNT)), range(COUNT)),
    "a user's own": Held,
}


def images(hold=lambda rows: rows):
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    rows = Dataset.from_dict({"image": [Image.fromarray(p) for p in pixels], "label": [i % 5 for i in range(COUNT)]})
    return hold(decode(rows)).with_transform(ImageTransform(augment=True))


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: Subset(rows, range(4))], ids=["itself", "Subset"])
def test_an_evaluation_set_of_random_rows_is_warned_of(tmp_path, wrap, caplog):
    parts = images().train_test_split(4, seed=0)
    clean = parts["test"].with_transform(ImageTransform())
    for scored, warned in ((parts["test"], True), ({"clean": clean, "same": parts["test"]}, True), (clean, False)):
        caplog.clear()
        scored = {n: wrap(one) for n, one in scored.items()} if isinstance(scored, dict) else wrap(scored)
        DistillationTrainer(
            Net(), teacher(), arguments(tmp_path / "run"), train_dataset=parts["train"], eval_dataset=scored
        )
        assert ("are cropped or flipped at random, as augment=True says" in caplog.text) is warned


class Photos(torch.utils.data.Dataset):
    """A dataset of a user's own, with a transform of torchvision's."""

    def __init__(self, *parts):
        self.transform = v2.Compose([*parts, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
        self.pictures = [Image.fromarray(one) for one in pixels]

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, row):
        return {"pixel_values": self.transform(self.pictures[row]), "labels": row % 5}


def erasing(rows):
    batch = ImageCollator()(rows)
    return batch | {"pixel_values": v2.RandomErasing(1.0)(batch["pixel_values"])}


@pytest.mark.parametrize(
    ("parts", "collate", "warned"),
    [
        ([v2.RandomCrop(8, padding=2)], None, True),
        ([v2.RandomHorizontalFlip()], None, True),
        ([], erasing, True),
        ([v2.CenterCrop(8)], None, False),
    ],
)
def test_evaluation_images_that_differ_each_time_they_are_read_are_warned_of(tmp_path, parts, collate, warned, caplog):
    torch.manual_seed(0)
    train, scored = torch.utils.data.random_split(Photos(*parts), [4, 4])
    data = {"train_dataset": train, "eval_dataset": scored, "data_collator": collate}
    DistillationTrainer(Net(), teacher(), arguments(tmp_path / "run"), **data)
    assert ("The images of eval_dataset differ each time they are read" in caplog.text) is warned


def test_an_evaluation_set_with_the_masks_of_each_epoch_is_warned_of(caplog):
    words = tokenizer()
    words.add_special_tokens({"mask_token": "[MASK]"})
    rows = Dataset.from_dict({"input_ids": [[5, 6]] * 4, "special_tokens_mask": [[0, 0]] * 4, "index": range(4)})
    parts = rows.with_transform(TokenMasking(words)).train_test_split(2, seed=0)
    for scored, warned in ((parts["test"], True), (rows.with_transform(TokenMasking(words)), False)):
        caplog.clear()
        warn_of_random_evaluation({"train_dataset": parts["train"], "eval_dataset": scored})
        assert ("eval_dataset has the transform of train_dataset (TokenMasking), whose rows" in caplog.text) is warned


class Seen(Net):
    """Keeps the images that it was trained on."""

    def __init__(self):
        super().__init__()
        self.images = []

    def forward(self, x):
        if self.training:
            self.images.append(x.detach().clone())
        return super().forward(x)


def trained_on(folder, train, kind=DistillationTrainer, **keywords):
    student = Seen()
    given = {"per_device_train_batch_size": COUNT, "max_steps": -1, "num_train_epochs": 3} | keywords
    trainer = kind(student, teacher(), arguments(folder, **given), train_dataset=train)
    student.images.clear()
    trainer.train()
    return student.images


@pytest.mark.parametrize("hold", [lambda rows: rows, resident], ids=["stored", "resident"])
def test_images_have_other_views_in_each_epoch_whatever_they_are_wrapped_in(tmp_path, hold):
    expected = trained_on(tmp_path / "expected", images(hold))
    assert not torch.equal(expected[0].sum(0), expected[1].sum(0))
    for name, wrap in WRAPPERS.items():
        found = trained_on(tmp_path / name, wrap(images(hold)))
        assert all(map(torch.equal, found, expected)), name


def test_persistent_workers_hear_of_the_epoch_of_a_wrapped_dataset(tmp_path):
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    found = trained_on(tmp_path / "workers", Subset(images(), range(COUNT)), **workers)
    assert all(map(torch.equal, found, trained_on(tmp_path / "expected", images())))


class Chained(torch.utils.data.IterableDataset):
    """A stream within another, which says no length and passes no epoch on."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def stream():
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    rows = {"image": [Image.fromarray(p) for p in pixels], "labels": [i % 5 for i in range(COUNT)]}
    return ImageStream(Dataset.from_dict(rows).to_iterable_dataset(), LargeImageTransform(size=8, augment=True))


class OwnLoader(DistillationTrainer):
    def get_train_dataloader(self):
        return torch.utils.data.DataLoader(stream(), COUNT)


def test_streams_without_length_have_other_views_in_each_pass(tmp_path):
    steps = {"max_steps": 3}
    expected = trained_on(tmp_path / "expected", stream(), **steps)
    assert not torch.equal(expected[0].sum(0), expected[1].sum(0))
    assert not torch.equal(expected[1].sum(0), expected[2].sum(0))
    found = trained_on(tmp_path / "chained", Chained(stream()), **steps)
    assert all(map(torch.equal, found, expected))
    own = trained_on(tmp_path / "own", None, OwnLoader, **steps)
    assert all(map(torch.equal, own, expected))


def test_masks_too():
    rows = Dataset.from_dict({"input_ids": [list(range(5, 35))], "special_tokens_mask": [[0] * 30], "index": [0]})
    words = tokenizer()
    words.add_special_tokens({"mask_token": "[MASK]"})
    rows = rows.with_transform(TokenMasking(words))
    for held in (Subset(rows, [0]), StackDataset(text=rows)):
        drawn = set()
        for epoch in range(3):
            set_epoch_of(held, epoch)
            drawn.add(str(held[0]))
        assert len(drawn) == 3


def test_the_rows_of_a_wrapped_dataset_are_the_same_rows_after_training():
    for wrap in WRAPPERS.values():
        rows = wrap(images())
        before = data_hash(rows)
        set_epoch_of(rows, 2)
        assert data_hash(rows) == before
