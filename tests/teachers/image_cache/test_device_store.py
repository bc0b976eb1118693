"""Rows held on a device are the file's: the same logits, and the file gets what is new."""

import pytest
import torch
from store_job import CLASSES, KEY, SLOTS, rows_of

from hfkd.teachers.image_cache.device_store import DeviceStore, fits
from hfkd.teachers.image_cache.store import LogitStore

CPU = torch.device("cpu")


def file(path):
    return LogitStore(path / "s", KEY, SLOTS, CLASSES)


@pytest.fixture
def half_full(tmp_path):
    kept, slots = file(tmp_path), torch.arange(0, SLOTS, 2)
    kept.write(slots, rows_of(slots, 0))
    return kept


def test_it_gives_what_the_file_gives(half_full):
    held, slots = DeviceStore(half_full, CPU), torch.tensor([0, 1, 2, -1, SLOTS - 1, SLOTS, 4])
    (mine, known), (its, found) = held.read(slots), half_full.read(slots)
    assert known.tolist() == found.tolist()
    assert torch.equal(mine[known], its[found])
    assert held.count() == half_full.count() == (SLOTS + 1) // 2


def test_what_is_new_is_in_the_file_with_the_next_call(half_full, tmp_path):
    held, slots = DeviceStore(half_full, CPU), torch.tensor([5, 1])
    got = held.write(slots, rows_of(slots, 0))
    assert not held.known[slots].any()
    again, known = held.read(slots)
    assert known.all()
    assert torch.equal(got, again)
    its, found = file(tmp_path).read(slots)
    assert found.all()
    assert torch.equal(its, again)


def test_flush_leaves_nothing_under_way(half_full, tmp_path):
    held, slots = DeviceStore(half_full, CPU), torch.tensor([5, 1])
    held.write(slots, rows_of(slots, 0))
    held.flush()
    assert file(tmp_path).read(slots)[1].all()


def test_rows_without_slot_or_not_finite_are_left_out(half_full):
    held, slots, rows = DeviceStore(half_full, CPU), torch.tensor([1, -1, 3, 5]), 3 * torch.randn(4, CLASSES)
    rows[2, 0], rows[3, 1] = float("nan"), float("inf")
    got = held.write(slots, rows)
    torch.testing.assert_close(got[1:], rows[1:], rtol=0, atol=0, equal_nan=True)
    assert held.read(slots)[1].tolist() == [True, False, False, False]
    assert half_full.read(slots)[1].tolist() == [True, False, False, False]


def test_a_cpu_holds_the_file_already():
    assert not fits(1, CPU)
