"""A run goes on with another number of processes: what is the same, what is close, what is said."""

import json

import pytest
import torch
from processes import on_ranks
from rank_resume_job import BATCH, MIDDLE, STEPS, train

RANKS = {"one": 1, "two": 2}


def run(folder, ranks, case, checkpoint=None, **more):
    """A run on so many ranks, whose batches have `BATCH` rows together; what each printed."""
    log = folder.with_suffix(".log")
    settings = (str(folder), case, BATCH // ranks, checkpoint, more.get("dropout", False), more.get("rows", 32))
    assert on_ranks(log, ranks, train, *settings) == [0] * ranks
    return log.with_name(f"{log.name}-0").read_text()


def rows_of(folder):
    """{step: the rows that all ranks had}"""
    found = {}
    for path in folder.glob("rows-*.json"):
        for step, rows in json.loads(path.read_text()):
            found.setdefault(step, []).extend(rows)
    return {step: sorted(rows) for step, rows in found.items()}


def end_of(folder):
    return torch.load(folder / "end.pt"), json.loads((folder / "end.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", ["Energy KD", "CTKD", "FitNet"])
@pytest.mark.parametrize(("before", "after"), [("one", "two"), ("two", "one")])
def test_the_state_and_the_rows_are_the_same_and_the_end_is_close(tmp_path, before, after, case):
    whole, same, other = (tmp_path / name for name in ("whole", "same", "other"))
    run(whole, RANKS[before], case)
    checkpoint = str(whole / f"checkpoint-{MIDDLE}")
    run(same, RANKS[before], case, checkpoint)
    said = run(other, RANKS[after], case, checkpoint)
    (weights, told), (again, told_again), (moved, told_moved) = map(end_of, (whole, same, other))
    assert told_moved["began"] == told_again["began"]  # bit for bit: weights, optimizer, schedule, thresholds
    assert "written by another number of processes" in said
    assert rows_of(other) == {step: rows for step, rows in rows_of(whole).items() if step >= MIDDLE}
    assert sorted(rows_of(other)) == list(range(MIDDLE, STEPS))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    if case == "FitNet":  # its regressor has a batch norm, which sees the rows of its rank alone
        assert weights.keys() == moved.keys()
        return
    for name in weights:
        torch.testing.assert_close(moved[name], weights[name], rtol=1e-4, atol=1e-5)
    assert told_moved["eval_loss"] == pytest.approx(told["eval_loss"], abs=1e-5)


@pytest.mark.slow
def test_what_differs_is_said_or_documented(tmp_path):
    """Dropout starts anew; over two ranks an epoch's last batch, where it is not whole, is filled with first rows."""
    run(tmp_path / "one", 1, "KD", dropout=True, rows=29)
    said = run(tmp_path / "two", 2, "KD", str(tmp_path / "one" / f"checkpoint-{MIDDLE}"), dropout=True, rows=29)
    assert "random generators (for dropout, custom transforms) are not restored" in said
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert [len(one[step]) for step in two] == [8, 5, 8, 8, 8, 5]
    assert [len(rows) for rows in two.values()] == [8] * 6
    assert all(set(one[step]) <= set(two[step]) for step in two)
