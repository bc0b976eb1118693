"""Tables of real runs: the numbers are those of results.json, and nothing is run twice, lost, or passed off."""

import json
import statistics

import pytest
import torch
from digit_files import flags, save_network, write_digits
from safetensors.torch import load_file

from hfkd.data import ImageDataArguments
from hfkd.models import NetworkArguments
from hfkd.parsing import parse
from hfkd.report import kept, reproduction
from hfkd.report.distil import distil_images
from hfkd.report.published import Published
from hfkd.report.reproduction import run_table
from hfkd.report.rows import read_table
from hfkd.trainer import DistillationArguments, DistillationTrainer

TABLE = """
title: Two ways
settings: {learning_rate: 0.02, optim: sgd}
reference: KD
rows:
  - {name: KD, settings: {temperature: 4.0}}
  - {name: EA-KD, settings: {temperature: 4.0, weighting: entropy}}
"""
PUBLISHED = Published(
    {"p": "A paper"},
    {},
    [
        {
            "source": "p",
            "data": "digits",
            "epochs": 240,
            "teacher": "teacher",
            "student": "cifar_resnet32",
            "accuracy": {"KD": 98.5},
        }
    ],
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write_digits(folder / "digits")
    torch.manual_seed(0)
    save_network(folder / "teacher")
    (folder / "two_ways.yaml").write_text(TABLE)
    return folder


def argv(work, output, **more):
    names = {"teacher_name": work / "teacher", "student_name": "cifar_resnet20", "output_dir": work / output}
    return flags(work / "digits", **(names | {"save_strategy": "epoch", "eval_strategy": "epoch"} | more))


def run(work, output, table=None, **more):
    given = argv(work, output, **more)
    return run_table(table or read_table(work / "two_ways.yaml"), given, PUBLISHED)


@pytest.fixture(scope="module")
def done(work):
    return run(work, "done", seeds=2, seed=7)


def results(work, output, row, seed):
    return json.loads((work / output / row / f"seed{seed}" / "results.json").read_text())


def cells(text, row):
    header, line = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith(("| method", f"| {row} |"))
    )
    return dict(zip(header, line, strict=True))


@pytest.mark.parametrize(("name", "folder"), [("KD", "kd"), ("EA-KD", "ea_kd")])
def test_the_table_is_what_the_results_say(work, done, name, folder):
    runs = [results(work, "done", folder, seed) for seed in (7, 8)]
    shown = cells(done, name)
    for which in ("best", "last"):
        values = [100 * run[which]["accuracy"] for run in runs]
        mean, sd = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5  # ddof = 1 of two values
        assert shown[f"ours, {which} epoch %"] == f"{mean:.2f} ± {sd:.2f}"
    speeds = {f: [results(work, "done", f, s)["images_per_second"] for s in (7, 8)] for f in (folder, "kd")}
    assert shown["images/s, KD = 1"] == f"{statistics.mean(speeds[folder]) / statistics.mean(speeds['kd']):.2f}"
    assert shown["teacher → student"] == "teacher → resnet20"
    assert (shown["seeds"], shown["epochs"], shown["steps"], shown["views"]) == ("2", "2", "6", "1")
    assert (shown["data"], shown["augmentation"], shown["extra images"]) == ("digits", "crop 1, flip", "none")
    assert (work / "done" / "table.md").read_text() == done
    rows = json.loads((work / "done" / "table.json").read_text())["rows"]
    mine = next(row for row in rows if row["name"] == name)
    assert mine["best"]["values"] == [100 * run["best"]["accuracy"] for run in runs]
    assert mine["first_loss"]["values"] == [run["losses"]["first"]["loss"] for run in runs]
    assert (mine["seeds"], mine["loss_steps"]) == ([7, 8], [1, 6])


def test_it_is_the_run_of_the_recipe_alone(work, done):
    given = argv(work, "alone", seed=8, temperature=4.0, learning_rate=0.02, optim="sgd", weighting="entropy")
    alone = distil_images(*parse((NetworkArguments, ImageDataArguments, DistillationArguments), given), page=False)
    for mine, theirs in zip(results(work, "done", "ea_kd", 8)["epochs"], alone["epochs"], strict=True):
        assert {k: v for k, v in mine.items() if "second" not in k and "runtime" not in k}.items() <= theirs.items()
    mine, theirs = (load_file(work / f / "model.safetensors") for f in ("done/ea_kd/seed8", "alone"))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_finished_run_is_not_run_again(work, done, monkeypatch):
    monkeypatch.setattr(kept, "distil_images", lambda *a, **k: pytest.fail("ran again"))
    assert run(work, "done", seeds=2, seed=7) == done


def test_more_seeds_run_the_new_ones_only(work, done, monkeypatch):
    ran = []
    monkeypatch.setattr(reproduction.Job, "run", lambda job: ran.append((job.row.name, job.seed)))
    run(work, "done", seeds=3, seed=7)
    assert ran == [("KD", 9), ("EA-KD", 9)]


def test_a_stopped_run_goes_on_from_its_checkpoint(work, done, monkeypatch):
    step = DistillationTrainer.training_step

    def stops(trainer, *arguments, **keywords):
        if trainer.args.seed == 8 and trainer.state.global_step == 4:  # in the second of two epochs
            raise KeyboardInterrupt
        return step(trainer, *arguments, **keywords)

    monkeypatch.setattr(DistillationTrainer, "training_step", stops)
    with pytest.raises(KeyboardInterrupt):
        run(work, "stopped", seeds=2, seed=7, rows="EA-KD")
    assert cells((work / "stopped" / "table.md").read_text(), "EA-KD")["seeds"] == "1"
    assert results(work, "stopped", "ea_kd", 8)["status"] == "running"
    monkeypatch.undo()
    text = run(work, "stopped", seeds=2, seed=7, rows="EA-KD")
    assert len(results(work, "stopped", "ea_kd", 7)["sittings"]) == 1
    assert [s["first_step"] for s in results(work, "stopped", "ea_kd", 8)["sittings"]] == [0, 3]
    name = "ours, last epoch %"
    assert cells(text, "EA-KD")[name] == cells(done, "EA-KD")[name]


def test_a_student_that_was_not_saved_is_not_finished(work, done, monkeypatch):
    marker = work / "done" / "kd" / "seed7" / "training_args.bin"
    content, ran = marker.read_bytes(), []
    marker.unlink()
    monkeypatch.setattr(reproduction.Job, "run", lambda job: ran.append((job.row.name, job.seed)))
    run(work, "done", seeds=2, seed=7)
    marker.write_bytes(content)
    assert ran == [("KD", 7)]


def test_published_numbers_stand_beside_ours(work, tmp_path):
    (tmp_path / "one.yaml").write_text("title: One\nrows: [{name: KD}, {name: EA-KD, settings: {weighting: entropy}}]")
    text = run(
        work, "published", read_table(tmp_path / "one.yaml"), seeds=1, student_name="cifar_resnet32", max_steps=1
    )
    assert cells(text, "KD")["paper %"] == "98.50 (p, 240 epochs)"
    assert cells(text, "EA-KD")["paper %"] == "not at hand"
    assert "- p: A paper" in text
    assert "±" not in text.split("\n\n")[1]  # of one seed there is no spread


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_train_epochs": 3}, "holds another run: its num_train_epochs is 2.0, this one's is 3.0"),
        ({"crop_padding": 0}, "holds another run: its crop_padding is 1, this one's is 0"),
        ({"weighting": "entropy"}, "row 'KD' is weighting uniform, and would no longer be what its name says"),
        ({"rows": "DKD"}, "--rows 'DKD' is none of"),
        ({"seeds": 0}, "seeds=0 must be 1 or more"),
        ({"teachers": "/nowhere", "teacher_name": "cifar_wrn_16_2"}, "there are no weights /nowhere/wrn_16_2.pth"),
        ({"objective": "kdd"}, "unknown objective 'kdd'"),
    ],
)
def test_what_is_refused_before_anything_runs(work, done, monkeypatch, more, message):
    monkeypatch.setattr(kept, "distil_images", lambda *a, **k: pytest.fail("ran"))
    with pytest.raises(ValueError, match=message):
        run(work, "done", **({"seeds": 2, "seed": 7} | more))


def test_a_folder_of_somebody_else_is_refused(work, done):
    (work / "done" / "kd" / "seed7" / "settings.json").rename(work / "aside.json")
    try:
        with pytest.raises(ValueError, match="holds another run"):
            run(work, "done", seeds=2, seed=7)
    finally:
        (work / "aside.json").rename(work / "done" / "kd" / "seed7" / "settings.json")
