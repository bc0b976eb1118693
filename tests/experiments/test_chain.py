"""A chain of assistants: each stage learns from the one before, finished ones are kept, a stopped one goes on."""

import json

import pytest
import torch
from digit_files import flags, save_network, write_digits
from safetensors.torch import load_file

from hfkd.arguments import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.experiments import chain, resume
from hfkd.experiments.chain import distil_chain
from hfkd.trainer import DistillationTrainer
from hfkd.utils.parsing import parse

STAGES = ("1_cifar_resnet32", "2_cifar_resnet20")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    write_digits(folder / "digits")
    torch.manual_seed(0)
    save_network(folder / "teacher")
    return folder


def run(work, output, **more):
    schedule = {"output_dir": work / output, "save_strategy": "epoch", "eval_strategy": "epoch"} | more
    data, args = parse((ImageDataArguments, DistillationArguments), flags(work / "digits", **schedule))
    return distil_chain([str(work / "teacher"), "cifar_resnet32", "cifar_resnet20"], None, data, args, page=False)


@pytest.fixture(scope="module")
def done(work):
    return run(work, "done")


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_each_stage_learns_from_the_one_before(work, done):
    assert [folder.name for folder in done] == list(STAGES)
    first, second = (results(folder)["config"] for folder in done)
    assert first["teacher_name"] == ["teacher"]
    assert second["teacher_name"] == ["1_cifar_resnet32"]
    assert (first["student_name"], second["student_name"]) == ("cifar_resnet32", "cifar_resnet20")
    taught = [json.loads((folder / "distillation.json").read_text())["teacher"] for folder in done]
    assert "cifar_resnet20" in taught[0]
    assert "cifar_resnet32" in taught[1]


def test_a_network_that_an_assistant_taught_cites_takd_and_names_it(done):
    first, last = ((folder / "README.md").read_text() for folder in done)
    assert "mirzadeh2020improved" not in first
    assert "mirzadeh2020improved" in last
    assert "hinton2015distilling" in last
    assert "| assistants | cifar_resnet32 |" in last
    assert results(done[1])["config"]["assistants"] == ["cifar_resnet32"]


def test_a_finished_stage_is_not_run_again(work, done, monkeypatch):
    monkeypatch.setattr(resume, "distil_images", lambda *a, **k: pytest.fail("ran again"))
    assert run(work, "done") == done


def test_only_the_student_is_uploaded(work, monkeypatch):
    """Under the name of the student an interrupted chain would leave an assistant."""
    uploads = []
    monkeypatch.setattr(
        chain, "distil_and_keep", lambda networks, data, args, *_, **__: uploads.append(args.push_to_hub)
    )
    run(work, "uploaded", push_to_hub=True, hub_model_id="owner/student")
    assert uploads == [False, True]


@pytest.mark.parametrize(("given", "passed"), [("true", None), ("false", False)])
def test_to_resume_is_said_of_the_stage_that_was_interrupted(work, monkeypatch, given, passed):
    """The next one has no checkpoint, and would end in an error, hours later."""
    said = []
    monkeypatch.setattr(resume, "distil_images", lambda _, __, args, *___: said.append(args.resume_from_checkpoint))
    run(work, f"resumed_{given}", resume_from_checkpoint=given)
    assert said == [passed, passed]
    with pytest.raises(ValueError, match="is the checkpoint of one run, and this command has several"):
        run(work, "of_one", resume_from_checkpoint=work / "checkpoint-3")


@pytest.mark.slow
def test_a_stopped_stage_goes_on(work, done, monkeypatch):
    step = DistillationTrainer.training_step

    def stops(trainer, *arguments, **keywords):
        if STAGES[1] in trainer.args.output_dir and trainer.state.global_step == 4:
            raise KeyboardInterrupt
        return step(trainer, *arguments, **keywords)

    monkeypatch.setattr(DistillationTrainer, "training_step", stops)
    with pytest.raises(KeyboardInterrupt):
        run(work, "stopped")
    monkeypatch.undo()
    folders = run(work, "stopped")
    assert [[s["first_step"] for s in results(folder)["sessions"]] for folder in folders] == [[0], [0, 3]]
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (folders[1], done[1]))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_other_settings_are_refused(work, done):
    with pytest.raises(
        ValueError, match=r"1_cifar_resnet32 contains another run: its temperature is 4.0, that of this run is 2"
    ):
        run(work, "done", temperature=2)


def test_a_chain_has_two_networks(work):
    with pytest.raises(ValueError, match=r"chain=\['a'\] must list a teacher"):
        distil_chain(["a"], None, None, None)
