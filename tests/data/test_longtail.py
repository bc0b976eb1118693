"""CIFAR-100-LT: the published counts on the real labels, and what stays as it was."""

import collections

import pytest
from datasets import Dataset

from hfkd.data.columns import num_labels
from hfkd.data.longtail import class_counts, long_tail

TOTALS = {0.5: 36_029, 0.1: 19_573, 0.02: 12_608, 0.01: 10_847}


def balanced(classes=4, each=10):
    rows = [i % classes for i in range(classes * each)]
    return Dataset.from_dict({"labels": rows, "index": list(range(len(rows)))})


@pytest.fixture(scope="module")
def cifar100_labels(data_dir):
    from datasets import load_dataset

    data = load_dataset(str(data_dir / "cifar100"), split="train").select_columns("fine_label")
    data = data.rename_column("fine_label", "labels")
    return data.add_column("index", range(len(data)))


@pytest.mark.parametrize(("factor", "total"), TOTALS.items())
def test_the_published_numbers_of_images(factor, total):
    assert sum(class_counts(500, 100, factor)) == total


@pytest.mark.parametrize(("factor", "total"), [(0.5, TOTALS[0.5]), (0.01, TOTALS[0.01])])
def test_real_cifar100(cifar100_labels, factor, total):
    tailed = long_tail(cifar100_labels, factor)
    counts = collections.Counter(tailed["labels"])
    assert len(tailed) == total
    assert [counts[c] for c in range(100)] == [int(500 * factor ** (c / 99)) for c in range(100)]
    assert (counts[0], counts[99]) == (500, int(500 * factor))
    assert num_labels(tailed) == 100
    index = tailed["index"][:]
    assert index == sorted(set(index)), "each image once, in the data set's order"
    assert [cifar100_labels["labels"][i] for i in index[:50]] == tailed["labels"][:50]


def test_the_draw_follows_the_seed_and_spreads_over_the_class():
    data = balanced(4, 500)
    first, again, other = (long_tail(data, 0.1, seed)["index"][:] for seed in (0, 0, 1))
    assert first == again != other
    last = [i for i in first if i % 4 == 3]
    assert len(last) == 50
    assert max(last) > 1500, "not merely the first images of the class"


def test_factor_one_keeps_everything():
    assert long_tail(balanced(), 1.0)["index"][:] == list(range(40))


@pytest.mark.parametrize("factor", [0.0, -0.5, 1.5, float("nan")])
def test_a_factor_outside_its_range_is_refused(factor):
    with pytest.raises(ValueError, match=r"imbalance_factor=.* must be in \(0, 1\]"):
        long_tail(balanced(), factor)


def test_what_cannot_be_tailed_is_refused():
    with pytest.raises(ValueError, match=r"leaves none of 10 images in the last class: set it above 0.1"):
        long_tail(balanced(), 0.05)
    short = balanced().select(range(2, 40))  # classes 0 and 1 have lost an image
    with pytest.raises(ValueError, match=r"class 0 has 9 images but should keep 10: pass a balanced"):
        long_tail(Dataset.from_dict({"labels": short["labels"][:] + [3] * 2}), 0.5)
