"""Averages that are put by are the plain means, however many batches are added up at once."""

import pytest
import torch
from accelerate import Accelerator

from hfkd.averages import FOLDED, BatchAverage


@pytest.mark.parametrize("batches", [1, FOLDED - 1, FOLDED, 2 * FOLDED + 3])
def test_the_mean_is_over_items_and_not_over_batches(batches):
    average, means, counts = BatchAverage(), torch.randn(batches), [1 + i % 5 for i in range(batches)]
    for mean, count in zip(means, counts, strict=True):
        average.add({"loss": mean}, count)
        average.keep()
    expected = sum(m.item() * c for m, c in zip(means, counts, strict=True)) / sum(counts)
    assert average.read(Accelerator(cpu=True)) == {"loss": pytest.approx(expected, rel=1e-5, abs=1e-6)}
    assert average.read(Accelerator(cpu=True)) == {}


def test_what_is_forgotten_does_not_count():
    average = BatchAverage()
    average.add({"loss": torch.tensor(1.0)}, 2)
    average.keep()
    average.add({"loss": torch.tensor(float("nan"))}, 2)
    average.forget()
    assert average.read(Accelerator(cpu=True)) == {"loss": 1.0}
