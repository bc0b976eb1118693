"""Which settings make another run of it, and which do not."""

from dataclasses import fields, replace

import pytest
from toys import arguments
from transformers import TrainingArguments

from hfkd.arguments import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.experiments.resume import DECISIVE, INDIFFERENT, PROCESSES, RECORDED_LATER, Run, deciding
from hfkd.experiments.run import without_paths
from hfkd.models import NetworkArguments


def names(*classes):
    return {f.name for cls in classes for f in fields(cls)}


def test_every_flag_of_ours_is_decisive_or_named_as_indifferent(tmp_path):
    ours = names(NetworkArguments, ImageDataArguments, DistillationArguments) - names(TrainingArguments)
    settings = deciding(NetworkArguments(), ImageDataArguments(), arguments(tmp_path))
    assert ours >= INDIFFERENT
    assert names(TrainingArguments) >= set(DECISIVE)
    assert settings.keys() == ours - INDIFFERENT | {*DECISIVE, *RECORDED_LATER}
    assert not any("_dir" in name or "hub" in name or "logging" in name for name in settings)


@pytest.mark.parametrize(
    ("change", "another"),
    [
        ({"adam_beta2": 0.9}, True),
        ({"dataloader_drop_last": True}, True),
        ({"on_nan": "ignore"}, True),
        ({"label_smoothing_factor": 0.1}, True),
        ({"eval_delay": 1}, True),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, True),
        ({"model_license": "mit"}, False),
        ({"dataloader_num_workers": 2}, False),
        ({"scan_cache_dir": "elsewhere"}, False),
    ],
)
def test_what_makes_another_run(tmp_path, change, another):
    networks, data = NetworkArguments(), ImageDataArguments()
    before, after = (deciding(networks, data, arguments(tmp_path, **more)) for more in ({}, change))
    assert (before != after) is another


def test_a_temperature_that_nobody_gave_is_the_usual_one(tmp_path):
    """As earlier versions wrote it down."""
    networks, data = NetworkArguments(), ImageDataArguments()
    usual, given = (deciding(networks, data, arguments(tmp_path, **more)) for more in ({}, {"temperature": "4.0"}))
    assert str(usual["temperature"]) == given["temperature"] == "4.0"
    assert not [name for name in usual if name.startswith("on_policy")]


def test_where_the_images_are_held_makes_no_other_run(tmp_path):
    networks, data, args = NetworkArguments(), ImageDataArguments(), arguments(tmp_path)
    assert deciding(networks, replace(data, resident=False), args) == deciding(networks, data, args)
    assert deciding(networks, replace(data, crop_padding=2), args) != deciding(networks, data, args)


def test_another_number_of_processes_is_another_batch(tmp_path):
    mine = deciding(NetworkArguments(), ImageDataArguments(), arguments(tmp_path))
    assert Run(mine | {PROCESSES: 2}, {}, "finished").difference(mine) == "its world_size is 2, that of this run is 1"
    earlier = {name: value for name, value in mine.items() if name != PROCESSES}  # of a version that did not record it
    assert Run(earlier, {}, "finished").difference(mine | {PROCESSES: 2}) is None


def test_names_that_begin_as_tokens_of_the_hub_do_are_told_apart(tmp_path):
    """They were hidden, so that one student's results were taken for another's."""
    data, args = ImageDataArguments(), arguments(tmp_path)
    small, large = (deciding(NetworkArguments(student_name=f"me/hf_student_{n}"), data, args) for n in "ab")
    assert (small["student_name"], large["student_name"]) == ("me/hf_student_a", "me/hf_student_b")


def test_folders_are_published_by_their_names(tmp_path, monkeypatch):
    """Also one that the run has yet to make; a text that is too long for a file's name is none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    text = "a" * 300 + "/b"
    config = {"output_dir": "/nowhere/me/analysis", "student": "runs/one", "prompt": text, "name": "me/net", "seed": 1}
    shown = {"output_dir": "analysis", "student": "one", "prompt": text, "name": "me/net", "seed": 1}
    assert without_paths(config) == shown
    assert without_paths({"students": ["runs/one", "/nowhere/two"]}) == {"students": ["one", "two"]}


def test_other_weights_under_the_same_name_are_another_run(tmp_path):
    def of(folder, content):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(content)
        return str(tmp_path / folder / "model.safetensors")

    def settings(**networks):
        return deciding(NetworkArguments(**networks), ImageDataArguments(), arguments(tmp_path))

    one, copied, other = of("one", b"first"), of("copied", b"first"), of("other", b"second")
    assert settings(teacher_checkpoint=[one]) == settings(teacher_checkpoint=[copied])
    mine, its = settings(teacher_checkpoint=[one]), settings(teacher_checkpoint=[other])
    assert "teacher_weights" in Run(its, {}, "finished").difference(mine)
    assert settings(student_checkpoint=one) != settings(student_checkpoint=other)
