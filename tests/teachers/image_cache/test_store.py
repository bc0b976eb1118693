"""Rows of logits in a file: as near as stated, and never wrong, whoever is killed, writes as well, or damages it."""

import logging
import multiprocessing
import os
import resource
import shutil
import signal

import pytest
import torch
from processes import start
from store_job import CLASSES, KEY, SLOTS, rows_of, write

from hfkd.teachers.image_cache.quantize import LEVELS
from hfkd.teachers.image_cache.store import HEADER, LogitStore


def store(path, slots=SLOTS, classes=CLASSES, key=KEY):
    return LogitStore(path, key, slots, classes)


def bound(logits):
    """A logit's largest error [M, 1]: what the docstring says, and float32's own rounding."""
    return (logits.amax(1) - logits.amin(1))[:, None] / LEVELS + 4e-7 * logits.abs().amax(1)[:, None]


# ---- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 3, 100, 101])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (12.0, 40.0), (1e-4, -5.0), (0.0, 7.0)])
def test_a_row_comes_back_within_the_bound_and_its_logsumexp_exactly(tmp_path, classes, scale, shift):
    logits = torch.randn(200, classes) * scale + shift
    kept, slots = store(tmp_path / "s", classes=classes), torch.randperm(SLOTS)[:200]
    kept.write(slots, logits)
    got, found = kept.read(slots)
    assert found.all()
    assert got.dtype == torch.float32
    assert ((got - logits).abs() <= bound(logits)).all()
    torch.testing.assert_close(got.logsumexp(1), logits.logsumexp(1), rtol=4e-7, atol=4e-6)


def test_it_is_nearer_than_centred_float16(tmp_path):
    logits = 5 * torch.randn(500, 100)
    kept = store(tmp_path / "s", classes=100)
    kept.write(torch.arange(500), logits)
    mean = logits.mean(1, keepdim=True)
    half = (logits - mean).half().float() + mean
    assert (kept.read(torch.arange(500))[0] - logits).abs().max() < (half - logits).abs().max() / 10


@pytest.mark.parametrize("left", [0, 100, HEADER, HEADER + 300])
def test_a_file_that_is_cut_while_it_is_in_use_is_an_emptier_one(tmp_path, left, caplog):
    """To read past the end of a mapped file is a signal that kills the process."""
    kept, other, slots = store(tmp_path / "s"), store(tmp_path / "s"), torch.arange(SLOTS)
    kept.write(slots, rows_of(slots.tolist(), 0))
    os.truncate(tmp_path / "s", left)
    _, found = kept.read(slots)
    assert found.sum() == max(0, left - HEADER) // kept.record
    assert "was truncated while in use" in caplog.text
    assert (tmp_path / "s").stat().st_size == kept.nbytes
    kept.write(slots[-5:], rows_of(slots[-5:].tolist(), 0))
    assert other.read(slots)[1].sum() == found.sum() + 5
    assert kept.count() == found.sum() + 5


def test_what_was_never_written_is_not_found(tmp_path):
    kept = store(tmp_path / "s")
    kept.write(torch.tensor([3, 0]), rows_of([3, 0], 0))
    got, found = kept.read(torch.tensor([0, 1, 3, -1, SLOTS, SLOTS - 1]))
    assert found.tolist() == [True, False, True, False, False, False]
    assert (got[~found] == 0).all()
    assert kept.count() == 2


def test_rows_without_slot_or_not_finite_are_left_out(tmp_path):
    kept, logits = store(tmp_path / "s"), rows_of([0, 1, 2, 3], 0)
    logits[1, 0], logits[2, 5] = float("nan"), -float("inf")
    kept.write(torch.tensor([-1, 1, 2, 3]), logits)
    assert kept.read(torch.arange(5))[1].tolist() == [False, False, False, True, False]
    assert (tmp_path / "s").stat().st_size == kept.nbytes


def test_others_see_what_is_written_at_once(tmp_path):
    writer, reader = store(tmp_path / "s"), store(tmp_path / "s")
    writer.write(torch.arange(8), rows_of(torch.arange(8), 0))
    assert reader.read(torch.arange(8))[1].all()


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_a_record_with_any_byte_altered_is_empty(tmp_path):
    kept = store(tmp_path / "s")
    kept.write(torch.tensor([7]), rows_of([7], 0))
    start = HEADER + 7 * kept.record
    for position in range(kept.record):
        with (tmp_path / "s").open("r+b") as file:
            file.seek(start + position)
            byte = file.read(1)[0]
            file.seek(start + position)
            file.write(bytes([byte ^ 0x41]))
            file.flush()
            assert not kept.read(torch.tensor([7]))[1].item(), f"byte {position}"
            file.seek(start + position)
            file.write(bytes([byte]))
    assert kept.read(torch.tensor([7]))[1].item()


def test_a_record_in_another_ones_place_is_empty(tmp_path):
    kept = store(tmp_path / "s")
    kept.write(torch.tensor([7]), rows_of([7], 0))
    with (tmp_path / "s").open("r+b") as file:
        file.seek(HEADER + 7 * kept.record)
        record = file.read(kept.record)
        file.seek(HEADER + 8 * kept.record)
        file.write(record)
    assert kept.read(torch.tensor([7, 8]))[1].tolist() == [True, False]


@pytest.mark.parametrize("damage", [lambda p: os.truncate(p, HEADER + 5), lambda p: p.write_bytes(b"x" * HEADER)])
def test_a_file_that_is_no_store_is_begun_anew(tmp_path, damage, caplog):
    store(tmp_path / "s").write(torch.arange(8), rows_of(torch.arange(8), 0))
    damage(tmp_path / "s")
    again = store(tmp_path / "s")
    assert "is not a store of this teacher's logits and is replaced" in caplog.text
    assert again.count() == 0
    again.write(torch.arange(8), rows_of(torch.arange(8), 0))
    assert store(tmp_path / "s").count() == 8


def test_another_key_does_not_read_these_rows(tmp_path):
    store(tmp_path / "s").write(torch.arange(8), rows_of(torch.arange(8), 0))
    assert store(tmp_path / "s", key={"teacher": "b"}).count() == 0


# ---- the disk --------------------------------------------------------------------------------------------------------


def test_the_size_is_said_and_taken_only_as_rows_come(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        kept = store(tmp_path / "s", slots=1_000_000, classes=100)
    assert "will take up to 0.22 GB (1,000,000 rows of 100 classes)" in caplog.text
    assert (tmp_path / "s").stat().st_size == kept.nbytes == HEADER + 1_000_000 * 224
    assert (tmp_path / "s").stat().st_blocks * 512 < 100_000


def test_holes_are_passed_over(tmp_path):
    kept = store(tmp_path / "s", slots=1_000_000, classes=100)
    assert list(kept.written(1000)) == []
    kept.write(torch.tensor([500_500, 999_999]), torch.randn(2, 100))
    parts = list(kept.written(1000))
    assert 2 <= len(parts) <= 4  # a page holds rows of two parts at most
    assert {500_500, 999_999} <= set(torch.cat(parts).tolist())
    assert kept.count() == 2


def test_a_disk_without_room_is_refused(tmp_path):
    slots = shutil.disk_usage(tmp_path).total // 100
    with pytest.raises(ValueError, match=r"may take .* GB .*, but .* has only .* GB free: choose another folder"):
        store(tmp_path / "s", slots=slots)
    assert not (tmp_path / "s").exists()


def test_a_disk_that_fills_up_ends_the_writing_and_not_the_run(tmp_path, caplog):
    kept = store(tmp_path / "s")
    kept.write(torch.arange(4), rows_of(torch.arange(4), 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # the kernel refuses to write beyond this byte
        resource.setrlimit(resource.RLIMIT_FSIZE, (HEADER + 6 * kept.record, hard))
        kept.write(torch.arange(4, 8), rows_of(torch.arange(4, 8), 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "No more rows are stored in" in caplog.text
    kept.write(torch.tensor([9]), rows_of([9], 0))
    assert kept.read(torch.arange(10))[1].tolist() == [True] * 6 + [False] * 4


# ---- several processes -----------------------------------------------------------------------------------------------


def writer(path, number):
    """A process that will write when it is sent something, and our end of its pipe."""
    ours, its = multiprocessing.Pipe()
    process = start(write, str(path), number, its)
    assert ours.recv() == "ready"
    return process, ours


def test_a_killed_run_leaves_all_it_said_was_written_and_nothing_wrong(tmp_path):
    process, pipe = writer(tmp_path / "s", 1)
    pipe.send("go")
    for _ in range(20):
        done = pipe.recv()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    got, found = store(tmp_path / "s").read(torch.arange(SLOTS))
    assert found[: done + 1].all()
    assert not found.all(), "the writer was through before it was killed"
    expected = rows_of(torch.arange(SLOTS), 1)
    assert ((got - expected).abs() <= bound(expected))[found].all()


def test_runs_that_write_the_same_rows_at_once_never_mix_them(tmp_path):
    processes, pipes = zip(*[writer(tmp_path / "s", number) for number in (1, 2)], strict=True)
    for pipe in pipes:
        pipe.send("go")
    reader, read = store(tmp_path / "s"), 0
    expected = [rows_of(torch.arange(SLOTS), number) for number in (1, 2)]
    while read == 0 or any(process.is_alive() for process in processes):
        some = torch.randint(SLOTS, (500,))
        got, found = reader.read(some)
        ours = [((got - e[some]).abs() <= bound(e[some])).all(1) for e in expected]
        assert (ours[0] | ours[1])[found].all()
        read += int(found.sum())
    assert [process.exitcode for process in processes] == [0, 0]
    assert reader.read(torch.arange(SLOTS))[1].float().mean() > 0.99
