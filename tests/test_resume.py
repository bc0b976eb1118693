"""A job killed with SIGKILL, at a step, in the scan or in the middle of a file, ends as the one that was left alone."""

import json
import re

import pytest
from resume_job import CASES, EVERY, left_over, outcome, sit

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Of each case: what the uninterrupted run leaves, and its events."""
    kept = {}

    def run(case):
        if case not in kept:
            folder = tmp_path_factory.mktemp("alone") / "run"
            assert sit(case, folder, save=f"{folder}.events") is None
            kept[case] = outcome(folder), json.loads((folder.parent / "run.events").read_text())
        return kept[case]

    return run


def survives(expected, case, folder, *kills):
    """Kill a run at each of `kills`, events counted since its last start; then let it end."""
    for kill in kills:
        assert sit(case, folder, kill_at=kill) is not None, f"the session ended before event {kill}"
    assert sit(case, folder) is None
    assert outcome(folder) == expected
    assert left_over(folder) == []


def test_energy_kd_killed_in_the_scan_at_a_step_and_in_a_checkpoint(alone, tmp_path):
    kills = ("scan", 3), ("step", EVERY + 1), ("write optimizer.pt", 0)
    survives(alone("Energy KD")[0], "Energy KD", tmp_path / "run", *kills)
    assert "_unfinished/checkpoint-8, which an interrupted job left unfinished" in (tmp_path / "run.log").read_text()


@pytest.mark.slow
def test_masks_killed_in_the_scan_of_their_pixels_at_a_step_and_in_a_checkpoint(alone, tmp_path):
    kills = ("scan", 2), ("step", EVERY + 1), ("write optimizer.pt", 0)
    survives(alone("masks")[0], "masks", tmp_path / "run", *kills)


@pytest.mark.slow
def test_lora_with_dropout_killed_between_accumulated_batches_and_in_the_adapter(alone, tmp_path):
    kills = ("step", 2 * EVERY + 5), ("write adapter_model.safetensors", 0)
    survives(alone("LoRA")[0], "LoRA", tmp_path / "run", *kills)


@pytest.mark.slow
def test_responses_are_written_again_as_they_were(alone, tmp_path):
    result, events = alone("on-policy")
    survives(result, "on-policy", tmp_path / "run", ("step", 2 * EVERY + 5), ("rename step-5.jsonl", 0))
    assert sum("jsonl" in name for name in events) == 18
    left = [json.loads(path.read_text().splitlines()[0])["by"] for path in (tmp_path / "run/completions").iterdir()]
    assert len(left) == 18
    assert set(left) == {"student", "teacher"}


def test_the_same_seed_gives_the_same_results(alone, tmp_path):
    assert sit("LoRA", tmp_path / "run") is None
    assert outcome(tmp_path / "run") == alone("LoRA")[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_kill_at_any_kind_of_event_changes_nothing(alone, tmp_path, case):
    """Every kind of event once: each batch of the scan counts as one, each file of a checkpoint, each deletion."""
    result, events = alone(case)
    kinds = {}
    for number, name in enumerate(events):
        kinds[re.sub(r"\d+", "N", name)] = number  # the last of its kind
    assert len(kinds) > 15
    for kind, number in kinds.items():
        folder = tmp_path / re.sub(r"\W", "-", kind)
        survives(result, case, folder, number)
