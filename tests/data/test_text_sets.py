"""Which rows of a set of texts are trained on, and which are scored."""

import logging

import pytest
from datasets import Dataset

from hfkd.data.text_sets import TextSetArguments


def write(folder, **splits):
    folder.mkdir(exist_ok=True)
    for name, count in splits.items():
        rows = {"text": [f"{name} {i}" for i in range(count)], "label": [i % 2 for i in range(count)]}
        Dataset.from_dict(rows).to_json(folder / f"{name}.jsonl")
    return folder


def splits(folder, **flags):
    return TextSetArguments(dataset_name=str(folder), **flags).splits()


def test_validation_comes_before_test_and_a_split_may_be_named(tmp_path):
    folder = write(tmp_path / "data", train=4, test=3, validation=2)
    assert splits(folder)[1]["text"][:] == ["validation 0", "validation 1"]
    assert len(splits(folder, eval_split="test")[1]) == 3
    train, scored = splits(folder, train_split="validation", eval_split="train")
    assert (len(train), len(scored)) == (2, 4)


def test_rows_that_are_held_out_are_those_of_train_test_split(tmp_path, caplog):
    caplog.set_level(logging.INFO, "hfkd")
    folder = write(tmp_path / "data", train=20)
    train, scored = splits(folder, hold_out=5, split_seed=3)
    rows = Dataset.from_dict({"text": [f"train {i}" for i in range(20)]}).train_test_split(5, seed=3)
    assert (train["text"][:], scored["text"][:]) == (rows["train"]["text"][:], rows["test"]["text"][:])
    assert "5 of 20 rows of 'train' are held out" in caplog.text
    assert splits(folder, hold_out=5, split_seed=4)[1]["text"][:] != scored["text"][:]


def test_fewer_rows_are_drawn_and_not_the_first_which_may_be_of_one_class(tmp_path):
    folder = write(tmp_path / "data", train=40, dev=10)
    train, scored = splits(folder, max_train_rows=8, max_eval_rows=100)
    assert len(train) == 8
    assert len(scored) == 10
    assert train["text"][:] != [f"train {i}" for i in range(8)]
    assert train["text"][:] == splits(folder, max_train_rows=8)[0]["text"][:]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, r"no split to evaluate on: it has \['train'\]; pass --eval_split, or --hold_out ROWS"),
        ({"eval_split": "test"}, "no split 'test'"),
        ({"train_split": "all"}, "no split 'all': it has"),
        ({"eval_split": "train"}, "is also the training split"),
        ({"hold_out": 4}, "leaves none of the"),
        ({"hold_out": 1, "eval_split": "test"}, "leave one out"),
        ({"hold_out": 0}, "hold_out=0 must be 1 or more"),
    ],
)
def test_splits_that_are_not_there_are_refused(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        splits(write(tmp_path / "data", train=4), **flags)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", 'text,label\n"one, two",0\nthree,1\n'),
        ("rows.tsv", "text\tlabel\none, two\t0\nthree\t1\n"),
        ("rows.jsonl", '{"text": "one, two", "label": 0}\n{"text": "three", "label": 1}\n'),
        ("rows.json", '{"text": "one, two", "label": 0}\n{"text": "three", "label": 1}\n'),
    ],
)
def test_one_file_is_read_by_its_name(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    train, scored = splits(tmp_path / name, hold_out=1)
    assert sorted([*train["text"], *scored["text"]]) == ["one, two", "three"]
    assert sorted([*train["label"], *scored["label"]]) == [0, 1]


def test_lines_of_a_text_file_and_a_parquet_file_are_rows(tmp_path):
    (tmp_path / "lines.txt").write_text("one\ntwo\nthree\n")
    assert len(splits(tmp_path / "lines.txt", hold_out=1)[0]) == 2
    Dataset.from_dict({"text": ["a", "b"]}).to_parquet(tmp_path / "rows.parquet")
    assert len(splits(tmp_path / "rows.parquet", hold_out=1)[0]) == 1


@pytest.mark.parametrize(("name", "content"), [("rows.csv", b"\xff\xfe\x00"), ("rows.parquet", b"no parquet")])
def test_a_broken_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read as"):
        splits(tmp_path / name, hold_out=1)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"none\.csv cannot be read: .*pass a Hub id, a folder or a file"):
        splits(tmp_path / "none.csv")
