"""A few rows compared: what is rounding passes, what is another network does not."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from toys import Net, Rows

from hfkd.data.collate import ImageCollator
from hfkd.teachers.agreement import disagreement, fixed_batches, size_of, spread_rows, tolerance


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (5, 5), (8, 8), (1000, 8)])
def test_rows_are_spread_over_the_set(count, expected):
    rows = spread_rows(count)
    assert len(rows) == expected == len(set(rows))
    assert rows == sorted(rows) == spread_rows(count)
    assert all(0 <= row < count for row in rows)
    if count == 1000:
        assert [row // 125 for row in rows] == list(range(8))


def test_the_tolerance_follows_the_least_precise():
    net = Net()
    exact, on_gpu = tolerance(net, "no", "cpu", "cpu"), tolerance(net, "no", "cuda", "cpu")
    assert exact < on_gpu == tolerance(net, "fp16", "cpu") < tolerance(net, "bf16", "cpu")
    assert tolerance(Net().bfloat16(), "no", "cpu") == tolerance(net, "bf16", "cpu")


def test_masked_classes_make_no_logits_large():
    assert size_of(torch.tensor([[3.0, -20.0, -1e9], [-100.0, -101.0, -float("inf")]])).tolist() == [20.0, 101.0]


@pytest.mark.parametrize(
    ("gap", "found"),
    [
        ([0.9, -0.9, 0.9, -0.9], False),  # rounding, of every row
        ([2.9, 0.0, 0.0, 0.0], False),  # of one row
        ([3.1, 0.0, 0.0, 0.0], True),
        ([1.1, 1.1, 1.1, 1.1], True),
        ([float("nan"), 0.0, 0.0, 0.0], True),
    ],
)
def test_a_mean_beyond_the_allowed_or_a_row_three_times_beyond_is_a_fault(gap, found):
    stored = torch.tensor([[5.0], [6.0], [7.0], [8.0]])
    said = disagreement(["energy"], [3, 5, 7, 9], stored, stored + torch.tensor(gap)[:, None], torch.ones(4))
    assert (said is not None) == found
    if found and gap[1] == 0 and gap[0] == gap[0]:
        assert said == "the energy of row 3 was stored as 5, but this teacher computes 8.1 (tolerance for rounding: 1)"


def test_rows_without_a_number_on_both_sides_agree():
    nan = torch.tensor([[float("nan")], [1.0]])
    assert disagreement(["energy"], [0, 1], nan, nan, torch.tensor([0.0, 1.0])) is None


@pytest.mark.parametrize("draw", [lambda: torch.rand(()).item(), random.random, np.random.random])
def test_random_rows_are_found_and_the_generators_left_alone(draw):
    def noisy(rows):
        return {"pixel_values": [torch.full((3, 4, 4), draw()) for _ in rows["labels"]], "labels": rows["labels"]}

    data = Dataset.from_dict({"labels": [0] * 9}).with_transform(noisy)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert fixed_batches(data, [0, 4], 2, ImageCollator()) is None
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    whole = fixed_batches(Rows(9), [0, 4, 7], 2, ImageCollator())
    assert [len(batch["labels"]) for batch in whole] == [2, 1]
