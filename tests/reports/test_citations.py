"""Each method has its paper, and a card cites those that a run used."""

import re

import pytest

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.logits import OBJECTIVES
from hfkd.losses.temperatures import TEMPERATURES
from hfkd.losses.weightings import WEIGHTINGS
from hfkd.reports.citations import NO_PAPER, PAPERS, bibliography, citations, slot_name


@pytest.mark.parametrize("name", [*OBJECTIVES, *TEMPERATURES, *WEIGHTINGS])
def test_every_method_has_a_paper_or_says_that_it_has_none(name):
    assert (slot_name(name) in PAPERS) != (slot_name(name) in NO_PAPER)


def test_every_entry_exists_is_used_and_is_whole():
    entries = bibliography()
    assert set(PAPERS.values()) == entries.keys()
    for entry in entries.values():
        assert re.match(r"@\w+\{\w+,\n", entry)
        assert entry.count("{") == entry.count("}")
        assert all(f"  {name} = {{" in entry for name in ("title", "author", "year"))


@pytest.mark.parametrize(
    ("slots", "cited"),
    [
        ({}, ["hinton2015distilling"]),
        ({"objective": "dkd", "temperature": "energy"}, ["zhao2022decoupled", "kim2024energy"]),
        (
            {"objective": "standardized(objective='dkd')", "weighting": "entropy"},
            ["sun2024logit", "zhao2022decoupled", "hinton2015distilling", "su2025eakd"],
        ),
        (
            {"objective": "skew_reverse_kl", "weighting": "matched(weighting='entropy')"},
            ["ko2024distillm", "hinton2015distilling", "su2025eakd"],
        ),
        ({"objective": lambda items, temperature: temperature}, ["hinton2015distilling"]),
    ],
)
def test_a_run_cites_what_it_used_once(slots, cited):
    described = DistillationLoss(**slots).describe()
    found = citations(str(described[slot]) for slot in ("objective", "temperature", "weighting"))
    assert re.findall(r"@\w+\{(\w+),", found) == cited


def test_networks_and_added_images_are_cited():
    assert re.findall(r"@\w+\{(\w+),", citations(["Peers (1,234 parameters)"])) == ["zhang2018mutual"]
    assert citations(["cifar_wrn_16_2 (691,674 parameters, weights d72d8cda)", "0.1", "sgd"]) == ""
