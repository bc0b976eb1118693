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


def test_the_file():
    published = Published.read(FILE)
    for entry in published.numbers:
        assert all(40 < number < 90 for number in entry["accuracy"].values())
        for name in (entry["teacher"], entry["student"]):
            assert timm.is_model(name.removeprefix("timm/").partition(".")[0])
    keys = [
        (e["source"], e["data"], e["teacher"], e["student"], method)
        for e in published.numbers
        for method in e["accuracy"]
    ]
    assert len(keys) == len(set(keys))
    assert set(published.teachers["cifar100"]) >= {e["teacher"] for e in published.numbers if e["data"] == "cifar100"}
    assert published.find("cifar100", "cifar_resnet32x4", "cifar_resnet8x4", "EA-KD").accuracy == 75.46
