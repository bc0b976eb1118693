"""Images held as tensors are the dataset's own: the same batches bit for bit, and nothing stale after a change."""

import copy

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import DataLoader
from toys import Net, arguments, teacher
from transformers import default_data_collator

from hfkd import DistillationTrainer
from hfkd.data.collate import ImageCollator
from hfkd.data.digits import load_digits
from hfkd.data.resident import ResidentImages, resident
from hfkd.data.transforms import ImageTransform

PLAIN = load_digits()[0].select(range(50))


def both(transform=None):
    transform = transform or ImageTransform(augment=True, padding=2, seed=4)
    return PLAIN.with_transform(transform), ResidentImages(PLAIN).with_transform(transform)


def batches(dataset, **keywords):
    generator = torch.Generator().manual_seed(7)
    return list(DataLoader(dataset, 8, shuffle=True, generator=generator, collate_fn=ImageCollator(), **keywords))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert list(a) == list(b)
        for name in a:
            assert a[name].dtype == b[name].dtype
            assert torch.equal(a[name], b[name]), name


# ---- the same ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keywords", [{}, {"num_workers": 2}], ids=["here", "workers"])
def test_the_loaders_batches_are_the_datasets_in_every_epoch(keywords):
    transform = ImageTransform(augment=True, padding=2, seed=4)
    plain, held = both(transform)
    seen = []
    for epoch in range(2):
        transform.set_epoch(epoch)
        seen.append(batches(held, **keywords))
        assert_same(seen[-1], batches(plain))
    assert not torch.equal(seen[0][0]["view"], seen[1][0]["view"])
    assert len(seen[0][-1]["labels"]) == 2  # 50 images in batches of 8


@pytest.mark.parametrize(
    "transform",
    [ImageTransform(), ImageTransform(augment=True, flip=False), ImageTransform(augment=True, mean=(0.1,) * 3)],
    ids=["clean", "no flip", "other mean"],
)
def test_any_transform_and_a_change_of_it(transform):
    plain, held = both()
    batches(held)
    assert_same(batches(held.with_transform(transform)), batches(plain.with_transform(transform)))
    assert_same(batches(held), batches(plain))


def test_a_batch_is_fetched_as_a_whole(monkeypatch):
    _, held = both()
    monkeypatch.setattr(Dataset, "__getitems__", lambda *a: pytest.fail("rows were made one by one"))
    assert isinstance(held.__getitems__([3, 1]), dict)


def test_a_copy_shares_the_pixels():
    _, held = both()
    assert copy.deepcopy(held)._tensors is held._tensors


# ---- what is derived from it -------------------------------------------------------------------------------------


class Inverted(ImageTransform):
    def __call__(self, batch):
        result = super().__call__(batch)
        return result | {"pixel_values": -result["pixel_values"]}


def relabelled(data):
    raw = data.with_format(None)
    raw = raw.remove_columns("labels").add_column("labels", [(x + 1) % 10 for x in raw["labels"]])
    return raw.with_transform(ImageTransform(augment=True))


DERIVED = {
    "select": lambda d: d.select([4, 2, 30, 7]),
    "shuffle": lambda d: d.shuffle(seed=1),
    "another transform": lambda d: d.with_transform(Inverted(augment=True)),
    "a column more": lambda d: d.add_column("weight", [0.0] * 50),
    "other labels": relabelled,
    "twice": lambda d: concatenate_datasets([d, d]),
}


@pytest.mark.parametrize("name", DERIVED)
def test_what_is_derived_from_it_is_never_stale(name):
    plain, held = both()
    change = DERIVED[name]
    assert_same(batches(change(held)), batches(change(plain)))


def test_of_a_selection_its_own_rows():
    rows = PLAIN.select([9, 3, 3, 40]).with_transform(ImageTransform(augment=True))
    assert_same(batches(ResidentImages(rows)), batches(rows))


def test_only_what_is_small_enough_is_held():
    size = 50 * (4 + 3 * 8 * 8)
    assert isinstance(resident(PLAIN, size), ResidentImages)
    assert type(resident(PLAIN, size - 1)) is Dataset


# ---- in training -------------------------------------------------------------------------------------------------


def train(folder, dataset, eval_dataset, **keywords):
    args = arguments(folder, max_steps=9, temperature="energy", **keywords)
    slots = {"train_dataset": dataset, "eval_dataset": eval_dataset}
    trainer = DistillationTrainer(Net(classes=10), teacher(10), args, **slots)
    trainer.train(resume_from_checkpoint=keywords.pop("resume", None))
    return trainer


def test_training_and_evaluation_and_resuming_are_bit_identical(tmp_path):
    keywords = {"save_strategy": "steps", "save_steps": 5}
    plain, held = (
        train(tmp_path / name, *pair, **keywords)
        for name, pair in zip(("plain", "held"), zip(both(), both(ImageTransform()), strict=True), strict=True)
    )
    assert torch.equal(plain.scan_result.energy, held.scan_result.energy)
    assert plain.evaluate()["eval_loss"] == held.evaluate()["eval_loss"]
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (plain, held)]
    assert losses[0] == losses[1]
    again = DistillationTrainer(
        Net(classes=10),
        teacher(10),
        arguments(tmp_path / "held", max_steps=9, temperature="energy"),
        train_dataset=both()[1],
    )
    again.train(resume_from_checkpoint=str(tmp_path / "held" / "checkpoint-5"))
    for name, parameter in plain.model.state_dict().items():
        assert torch.equal(parameter, held.model.state_dict()[name]), name
        assert torch.equal(parameter, again.model.state_dict()[name]), f"{name} after resuming"


def in_a_list(rows):
    """A collator of a user's own, which reads rows one by one."""
    labels = torch.tensor([int(row["labels"]) for row in rows])
    return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}


@pytest.mark.parametrize("collate", [in_a_list, torch.utils.data.default_collate, default_data_collator])
def test_a_collator_of_ones_own_gets_the_rows(tmp_path, collate):
    losses = []
    for data in both():
        args = arguments(tmp_path / str(len(losses)), max_steps=9)
        parts = {"train_dataset": data, "eval_dataset": data.with_transform(ImageTransform())}
        trainer = DistillationTrainer(Net(classes=10), teacher(10), args, data_collator=collate, **parts)
        losses.append((trainer.train().training_loss, trainer.evaluate()["eval_loss"]))
    assert losses[0] == losses[1]
