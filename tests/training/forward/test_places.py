"""Every slot is told the step, and which rows its items are of: images, tokens, documents, pixels or groups."""

import pytest
import torch
import two_tokenizer_toys
from task_toys import Pixels
from text_toys import language_model, taught_model, tokenizer
from toys import CLASSES, Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.losses.base import Objective, Requirements, Weighting
from hfkd.models import Peers

ROWS = 20


class Seen(Weighting):
    """Weights of 1, from which row each item is."""

    def __init__(self, kept):
        self.kept = kept

    def __deepcopy__(self, memo):  # what is tried when the trainer is built is not kept
        return Seen([])

    def requirements(self):
        return Requirements(index=True, signals=True)

    def __call__(self, items):
        self.kept.append((items.step, items.seed, items.index, items.sample, items.labels))
        return torch.ones(len(items))


class SeenBeside(Objective):
    """The same of samples, beside the chunks of the loss."""

    level, softens = "sample", False

    def __init__(self, seen):
        self.seen = seen

    def requirements(self):
        return Requirements(student=(1,), teacher=(1,), index=True, signals=True)

    def __call__(self, items, temperature):
        self.seen(items)
        student, teacher = items.student.features[1], items.teacher.features[1]
        return (student.mean(-1) - teacher.mean(-1)).square().mean(-1)


class Numbered(Rows):
    """Rows whose label says their number."""

    def __init__(self):
        super().__init__(ROWS)

    def __getitem__(self, i):
        return super().__getitem__(i) | {"index": i}


def masks():
    images = torch.randn(ROWS, 3, 6, 8)
    return [{"pixel_values": images[i], "labels": torch.full((6, 8), i % 3), "index": i} for i in range(ROWS)]


def tokens(documents=1):
    """Each row has one token over and over, in one or several documents."""
    return [
        {"input_ids": (ids := [3 + i % CLASSES] * 8), "labels": ids, "index": i}
        | ({} if documents == 1 else {"seq_lengths": [8 // documents] * documents})
        for i in range(ROWS)
    ]


def text(documents=1, beside=False, **settings):
    def make(folder, seen):
        slots = {"objective": ["kd", SeenBeside(seen)]} if beside else {"weighting": seen}
        args = arguments(folder / "run", gradient_accumulation_steps=2, per_device_train_batch_size=4, **settings)
        networks = language_model(), taught_model()
        for network in networks:
            network.config.use_cache = False
        return DistillationTrainer(
            *networks, args, train_dataset=tokens(documents), processing_class=tokenizer(), **slots
        )

    return make


def images(student=Net, taught=teacher, rows=Numbered, **settings):
    def make(folder, seen):
        return DistillationTrainer(
            student(), taught and taught(), arguments(folder / "run", **settings), train_dataset=rows(), weighting=seen
        )

    return make


def groups(**settings):
    def make(folder, seen):
        return two_tokenizer_toys.trainer(folder / "run", args=settings, objective="uld", weighting=seen)

    return make


MASKS = {"task": "semantic_segmentation"}
MADE = {
    "images": images(),
    "mixed images": images(he_da="released"),
    "peers": images(lambda: Peers([Net(), Net(seed=2)]), None),
    "pixels, whole": images(lambda: Pixels(4), lambda: Pixels(8), masks, **MASKS, objective="dist"),
    "pixels, in strips": images(lambda: Pixels(4), lambda: Pixels(8), masks, **MASKS),
    "tokens": text(),
    "tokens, in chunks": text(loss_chunk_size=4),
    "documents": text(documents=2),
    "documents, in chunks": text(documents=2, loss_chunk_size=4),
    "states": text(beside=True),
    "states beside chunks": text(beside=True, loss_chunk_size=4),
}


@pytest.mark.parametrize("name", MADE)
def test_items_say_their_rows_and_the_step(tmp_path, name):
    kept = []
    MADE[name](tmp_path, Seen(kept)).train()
    assert {step for step, *_ in kept} == {0, 1, 2}
    classes = 3 if "pixels" in name else CLASSES
    labelled = 0
    for _, seed, index, sample, labels in kept:
        assert seed == 42
        if labels is not None and labels.ndim == 1:  # mixed images have none
            labelled += 1
            first = 3 if name not in ("images", "peers", "mixed images") and "pixels" not in name else 0
            assert torch.equal(index[sample] % classes, labels - first)
    assert labelled >= 3


@pytest.mark.parametrize("chunk", [0, 8])
def test_groups_of_tokens_say_their_rows_too(tmp_path, chunk):
    kept = []
    groups(loss_chunk_size=chunk)(tmp_path, Seen(kept)).train()
    assert {step for step, *_ in kept} == {0, 1, 2}
    assert all(index.shape == (8,) and int(sample.max()) < 8 for _, _, index, sample, _ in kept)
    assert len(torch.cat([index for _, _, index, *_ in kept]).unique()) == 16


def test_rows_without_an_index_are_refused_for_any_slot(tmp_path):
    with pytest.raises(ValueError, match=r"Seen\(.*\) looks training rows up by their number, and the rows"):
        images(rows=lambda: Rows(ROWS))(tmp_path, Seen([]))


def test_so_are_rows_that_are_set_later(tmp_path):
    trainer = images()(tmp_path, Seen([]))
    trainer.train_dataset = Rows(ROWS)
    with pytest.raises(ValueError, match="the rows have no column 'index'"):
        trainer.train()
    kept = []
    trainer = images()(tmp_path, Seen(kept))
    trainer.train_dataset = Numbered()
    trainer.train()
    assert len(kept) == 3
