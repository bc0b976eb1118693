"""A resumed run is bit for bit the one that was not stopped, or it says why it is not."""

import random

import numpy as np
import pytest
import torch
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.data import ImageTransform
from hfkd.data.digits import load_digits
from hfkd.training.validation.random_rows import warn_of_random_rows

DRAWS = {
    "torch": lambda: torch.rand(()),
    "numpy": lambda: float(np.random.rand()),
    "random": random.random,
}


class Jittered(Rows):
    """Rows whose brightness a user's own transform draws."""

    draw = staticmethod(DRAWS["torch"])

    def __getitem__(self, i):
        row = super().__getitem__(i)
        return row | {"pixel_values": row["pixel_values"] * (1 + self.draw())}


class ByIndex(Rows):
    def __getitem__(self, i):
        row = super().__getitem__(i)
        return row | {"pixel_values": row["pixel_values"] * np.random.default_rng(i).random()}


def augmented():
    return load_digits()[0].select(range(32)).with_transform(ImageTransform(augment=True, padding=1))


def run(folder, data, resume=None):
    torch.manual_seed(0)
    args = arguments(folder, max_steps=6, save_strategy="steps", save_steps=2)
    trainer = DistillationTrainer(Net(classes=10), teacher(10), args, train_dataset=data)
    trainer.train(resume_from_checkpoint=resume)
    return [p.detach() for p in trainer.model.parameters()]


def resumed_and_whole(folder, data):
    whole = run(folder, data)
    return whole, run(folder, data, str(folder / "checkpoint-2"))


@pytest.mark.parametrize("draw", DRAWS)
def test_rows_that_are_drawn_anew_are_warned_of(tmp_path, caplog, draw):
    data = Jittered()
    data.draw = DRAWS[draw]
    whole, resumed = resumed_and_whole(tmp_path, data)
    assert not all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    (said,) = [m for m in caplog.messages if "each time they are read" in m]
    assert "ends with different weights" in said


@pytest.mark.parametrize("data", [Rows, ByIndex, augmented])
def test_rows_that_are_the_same_again_are_not_and_resume_bit_for_bit(tmp_path, caplog, data):
    whole, resumed = resumed_and_whole(tmp_path, data())
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert "each time they are read" not in caplog.text


def test_looking_draws_nothing():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for draw in DRAWS.values():
        data = Jittered()
        data.draw = draw
        warn_of_random_rows(data)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
