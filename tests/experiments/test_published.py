"""Published numbers: found by data, pair and method, in the order of the sources asked for, and never made up."""

from pathlib import Path

import pytest
import timm

import hfkd.models  # noqa: F401  (registers the CIFAR networks)
from hfkd.experiments.published import Published, PublishedNumber

FILE = Path(__file__).parents[2] / "recipes" / "published.yaml"
ENTRY = {"source": "a", "data": "cifar100", "teacher": "t", "student": "s", "accuracy": {"KD": 70.5}}


def test_the_first_source_that_has_it():
    later = ENTRY | {"source": "b", "epochs": 240, "accuracy": {"KD": 71.0, "DKD": 72.0}}
    published = Published({"a": "A", "b": "B"}, {}, [later, ENTRY])
    assert published.find("cifar100", "t", "s", "KD") == PublishedNumber(70.5, "a", None)
    assert published.find("cifar100", "t", "s", "KD", ["b", "a"]) == PublishedNumber(71.0, "b", 240)
    assert published.find("cifar100", "t", "s", "DKD") == PublishedNumber(72.0, "b", 240)


@pytest.mark.parametrize(
    "asked", [("cifar10", "t", "s", "KD"), ("cifar100", "s", "t", "KD"), ("cifar100", "t", "s", "Energy KD")]
)
def test_what_is_not_in_the_file_is_not_at_hand(asked):
    assert Published({"a": "A"}, {}, [ENTRY]).find(*asked) is None


def test_a_number_needs_a_source():
    with pytest.raises(ValueError, match=r"its source is not among \['b'\]"):
        Published({"b": "B"}, {}, [ENTRY])


def test_several_pairs_have_a_number_each():
    entry = {
        "source": "a",
        "data": "d",
        "pairs": ["t > s", "u > s"],
        "accuracy": {"KD": [1, None]},
        "top5": {"KD": [2, 3]},
    }
    published = Published({"a": "A"}, {}, [entry])
    assert published.find("d", "t", "s", "KD").value == 1
    assert published.find("d", "u", "s", "KD") is None
    assert published.find("d", "u", "s", "KD", measure="top5").value == 3
    with pytest.raises(ValueError, match="numbers of a, KD"):
        Published({"a": "A"}, {}, [entry | {"accuracy": {"KD": [1]}}])
    with pytest.raises(ValueError, match="is listed twice"):
        Published({"a": "A"}, {}, [entry, entry])


def test_a_table_that_names_no_pair_is_any_pairs():
    entry = {"source": "a", "data": "d", "pairs": ["any > any"], "time": {"KD": [1]}}
    published = Published({"a": "A"}, {}, [entry])
    assert published.find("d", "t", "s", "KD", measure="time").value == 1


def test_numbers_that_differ_are_all_there():
    published = Published.read(FILE)
    cell = ("cifar100", "cifar_wrn_40_2", "cifar_wrn_16_2", "KD")
    assert {n.value for n in published.every(*cell).values()} == {74.92, 75.06}


def test_the_file():
    published = Published.read(FILE)
    for measure, data, teacher, student, method in published.keys:
        numbers = published.every(data, teacher, student, method, measure).values()
        assert measure not in ("accuracy", "top5") or all(40 < number.value < 95 for number in numbers)
        for name in (teacher, student):
            known = name == "any" or data in ("coco", "dolly")
            assert known or timm.is_model(name.removeprefix("timm/").partition(".")[0])
        assert data != "cifar100" or teacher in (*published.teachers[data], "any")
    assert published.find("cifar100", "cifar_resnet32x4", "cifar_resnet8x4", "EA-KD").value == 75.46
