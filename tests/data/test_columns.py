"""Whole columns of stored rows, and what reading them does not take."""

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.formatting import NumpyFormatter
from toys import Net, arguments, packed_images, teacher

from hfkd import DistillationTrainer
from hfkd.data.columns import whole_column

VALUES = {
    "int64": [4, 0, 7, 2, 2, 9],
    "int8": [4, 0, -7, 2, 2, 9],
    "uint32": [4, 0, 7, 2, 2, 9],
    "bool": [True, False, False, True, True, False],
    "float64": [0.1, 4.0, 2.5, 1.0, 0.0, -1.0],
    "string": list("abcabc"),
}
ORDERS = {
    "as stored": lambda rows: rows,
    "shuffled": lambda rows: rows.shuffle(seed=1),
    "some": lambda rows: rows.select([5, 0, 0, 3]),
    "none": lambda rows: rows.select([]),
    "a slice": lambda rows: rows.select(range(2, 5)),
    "of parts": lambda rows: concatenate_datasets([rows.select(range(2)), rows.shuffle(seed=2), rows]),
    "of parts, shuffled": lambda rows: concatenate_datasets([rows, rows]).shuffle(seed=3),
}


def stored(values, kind):
    return Dataset.from_dict({"labels": values}, features=Features({"labels": kind}))


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("rows", [*(stored(values, Value(kind)) for kind, values in VALUES.items())], ids=VALUES)
def test_a_column_is_as_datasets_gives_it(rows, order):
    rows = order(rows)
    found, expected = whole_column(rows, "labels"), np.asarray(rows.with_format("numpy")["labels"][:])
    assert found.tolist() == expected.tolist()
    assert found.dtype == expected.dtype or not len(rows)


def test_missing_values_and_lists_are_as_datasets_gives_them():
    assert np.isnan(whole_column(stored([1, None], Value("int64")), "labels")).tolist() == [False, True]
    assert whole_column(stored([[1, 2], [3, 4]], List(Value("int64"))), "labels").tolist() == [[1, 2], [3, 4]]


def test_the_labels_of_shuffled_rows_are_not_formatted_row_by_row(tmp_path, monkeypatch):
    formatted, batch = [], NumpyFormatter.format_batch
    monkeypatch.setattr(NumpyFormatter, "format_batch", lambda *given: formatted.append(given) or batch(*given))
    rows = packed_images([i % 5 for i in range(20)]).shuffle(seed=0)
    trainer = DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=rows, eval_dataset=rows)
    assert trainer.task.complete
    assert not formatted
