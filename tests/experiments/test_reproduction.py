"""Tables of real runs: the numbers are those of results.json, and nothing is run twice, lost, or passed off."""

import json
import shutil
import statistics
from dataclasses import replace

import pytest
import torch
from digit_files import flags, save_network, write_digits
from safetensors.torch import load_file

from hfkd.data import ImageDataArguments
from hfkd.experiments import reproduction, resume
from hfkd.experiments.distil import distil_images
from hfkd.experiments.notes import notes
from hfkd.experiments.published import Published
from hfkd.experiments.reproduction import run_table
from hfkd.experiments.resume import kept_run
from hfkd.experiments.rows import read_table
from hfkd.experiments.summary import summarise
from hfkd.models import NetworkArguments
from hfkd.trainer import DistillationArguments, DistillationTrainer
from hfkd.utils.own_version import own_version
from hfkd.utils.parsing import parse

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


def test_the_figure_is_beside_the_table(work, done):
    assert "table.svg" in {path.name for path in (work / "done").iterdir()}
    assert (work / "done" / "table.svg").read_text().rstrip().endswith("</svg>")


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
    monkeypatch.setattr(resume, "distil_images", lambda *a, **k: pytest.fail("ran again"))
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
    assert len(results(work, "stopped", "ea_kd", 7)["sessions"]) == 1
    assert [s["first_step"] for s in results(work, "stopped", "ea_kd", 8)["sessions"]] == [0, 3]
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


# ---- runs that fail, and calls with less --------------------------------------------------------------------------

DIVERGES = """
title: One way that diverges
settings: {optim: sgd, learning_rate: 0.02}
rows:
  - {name: KD, settings: {temperature: 4.0}}
  - {name: too fast, settings: {learning_rate: 1.0e+20}}
  - {name: EA-KD, settings: {temperature: 4.0, weighting: entropy}}
"""


def of_kind(text, kind):
    return [line for line in text.splitlines() if line.startswith("- ") and kind in line]


@pytest.fixture(scope="module")
def diverging(work):
    (work / "diverges.yaml").write_text(DIVERGES)
    return read_table(work / "diverges.yaml")


@pytest.fixture(scope="module")
def failed(work, diverging):
    return run(work, "failed", diverging, seeds=1, seed=7, save_strategy="steps", save_steps=1)


def again(work, diverging, **more):
    return run(work, "failed", diverging, **({"seeds": 1, "seed": 7, "save_strategy": "steps", "save_steps": 1} | more))


def test_a_run_that_diverges_is_recorded_and_the_table_goes_on(work, failed):
    found = results(work, "failed", "too_fast", 7)
    assert found["status"] == "failed"
    assert "NaN or infinite" in found["failure"]
    assert cells(failed, "EA-KD")["seeds"] == cells(failed, "KD")["seeds"] == "1"
    line = cells(failed, "too fast")
    assert line["seeds"] == "0 + 1 failed"
    assert line["ours, best epoch %"] == line["ours, last epoch %"] == "-"
    assert of_kind(failed, "too fast, seed 7: failed, step ")[0].endswith(found["failure"])
    row = next(r for r in json.loads((work / "failed" / "table.json").read_text())["rows"] if r["name"] == "too fast")
    assert row["failed"] == [{"seed": 7, "train_steps": found["train_steps"], "failure": found["failure"]}]
    assert row["seeds"] == []


def test_what_failed_is_not_tried_again_with_the_same_settings(work, diverging, failed, monkeypatch, caplog):
    monkeypatch.setattr(resume, "distil_images", lambda *a, **k: pytest.fail("ran again"))
    assert again(work, diverging) == failed
    assert "too fast, seed 7, failed in an earlier call" in caplog.text


@pytest.mark.slow
def test_what_failed_goes_on_where_nan_is_let_pass(work, diverging, failed):
    text = again(work, diverging, on_nan="ignore")
    found = results(work, "failed", "too_fast", 7)
    assert (found["status"], found["train_steps"]) == ("finished", 6)
    assert len(found["sessions"]) == 2
    assert cells(text, "too fast")["seeds"] == "1"
    assert of_kind(text, "too fast, seed 7: on_nan=ignore")
    assert not of_kind(text, "failed")
    assert len(results(work, "failed", "kd", 7)["sessions"]) == 1  # what was finished stays finished


@pytest.mark.slow
def test_what_failed_is_tried_anew_with_another_rate(work):
    (work / "fast.yaml").write_text("title: Fast\nsettings: {optim: sgd}\nrows: [{name: KD}, {name: EA-KD}]\n")
    table = read_table(work / "fast.yaml")
    run(work, "fast", table, seeds=1, seed=7, rows="KD", learning_rate=1e20)
    text = run(work, "fast", table, seeds=1, seed=7, learning_rate=0.01)
    found = results(work, "fast", "kd", 7)
    assert (found["status"], len(found["sessions"]), found["config"]["learning_rate"]) == ("finished", 1, 0.01)
    assert results(work, "fast", "kd", "7.failed-1")["status"] == "failed"
    assert cells(text, "KD")["seeds"] == cells(text, "EA-KD")["seeds"] == "1"
    assert not of_kind(text, "not one protocol")


def test_without_matplotlib_the_table_comes_alone(work, done, monkeypatch, caplog):
    shutil.copytree(work / "done", work / "plain")
    (work / "plain" / "table.svg").unlink()
    monkeypatch.setattr(reproduction, "find_spec", lambda name: None)
    assert run(work, "plain", seeds=2, seed=7) == done
    assert "table.svg will not be written, as matplotlib is missing" in caplog.text
    assert not (work / "plain" / "table.svg").exists()


@pytest.mark.parametrize("fewer", [{"rows": "KD"}, {"seeds": 1}, {"seed": 8, "seeds": 1, "rows": "EA-KD"}])
def test_a_call_with_less_keeps_what_is_there(work, done, monkeypatch, fewer):
    monkeypatch.setattr(resume, "distil_images", lambda *a, **k: pytest.fail("ran again"))
    assert run(work, "done", **({"seeds": 2, "seed": 7} | fewer)) == done


def test_an_evaluation_before_the_end_of_training_is_said(work, done):
    """The column is called last epoch: with --eval_steps the last evaluation may be of an earlier one."""
    table = read_table(work / "two_ways.yaml")
    whole = kept_run(work / "done" / "kd" / "seed7")
    early = replace(whole, results=whole.results | {"train_epochs": whole.results["last"]["epoch"] + 0.5})
    said = [notes([summarise(table.rows[0], [one], PUBLISHED, table)], frozenset()) for one in (whole, early)]
    assert said == [[], ["KD, seed 7: last evaluated at epoch 2 of 2.5"]]


def test_rows_of_two_versions_of_hfkd_are_said_to_be(work, done):
    """A method may have been mended between them: means and differences would be of two methods."""
    table = read_table(work / "two_ways.yaml")
    whole = kept_run(work / "done" / "kd" / "seed7")
    later = whole.results | {"environment": whole.results["environment"] | {"hfkd": "9.9+later"}}
    lines = [summarise(row, [whole, replace(whole, results=later)], PUBLISHED, table) for row in table.rows[:1]]
    assert notes(lines, frozenset()) == [
        f"not one version of hfkd, in which methods may compute something else: {own_version()} (KD); 9.9+later (KD)"
    ]


def test_runs_of_a_table_in_another_format_are_refused(work, done, monkeypatch):
    file = work / "done" / "kd" / "seed7" / "settings.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {"version": 2}))
    monkeypatch.setattr(resume, "distil_images", lambda *a, **k: pytest.fail("ran"))
    try:
        with pytest.raises(ValueError, match="settings.json has version 2 of its format.*choose another output_dir"):
            run(work, "done", seeds=2, seed=7)
    finally:
        file.write_text(before)


def test_one_row_never_averages_two_protocols(work, done, monkeypatch):
    monkeypatch.setattr(resume, "distil_images", lambda *a, **k: pytest.fail("ran"))
    with pytest.raises(
        ValueError, match="kd/seed7 contains another run: its num_train_epochs is 2.0, that of this run is 3.0"
    ):
        run(work, "done", seeds=1, seed=9, num_train_epochs=3)


@pytest.mark.slow
def test_rows_of_two_protocols_are_said_to_be(work, tmp_path):
    table = read_table(work / "two_ways.yaml")
    run(work, "unequal", table, seeds=1, seed=7, rows="KD", max_steps=2)
    text = run(work, "unequal", table, seeds=1, seed=7, rows="EA-KD", max_steps=3)
    assert of_kind(text, "max_steps") == ["- not one protocol: max_steps is 2 (KD); 3 (EA-KD)"]
    assert (cells(text, "KD")["steps"], cells(text, "EA-KD")["steps"]) == ("2", "3")


@pytest.mark.slow
def test_losses_of_other_steps_than_the_header_say_so(work):
    (work / "losses.yaml").write_text("measure: loss\ntitle: L\nsettings: {optim: sgd}\nrows: [{name: A}, {name: B}]\n")
    table = read_table(work / "losses.yaml")
    run(work, "losses", table, seeds=1, seed=7, rows="A", max_steps=2)
    text = run(work, "losses", table, seeds=1, seed=7, rows="B", max_steps=3)
    assert "loss, step 2" in text
    assert cells(text, "B")["loss, step 2"].endswith(" (step 3)")
    assert "step" not in cells(text, "A")["loss, step 2"]


# ---- what is refused ----------------------------------------------------------------------------------------------


def test_published_numbers_stand_beside_ours(work, tmp_path):
    (tmp_path / "one.yaml").write_text("title: One\nrows: [{name: KD}, {name: EA-KD, settings: {weighting: entropy}}]")
    text = run(
        work, "published", read_table(tmp_path / "one.yaml"), seeds=1, student_name="cifar_resnet32", max_steps=1
    )
    assert cells(text, "KD")["paper %"] == "98.50 (p, 240 epochs)"
    assert cells(text, "EA-KD")["paper %"] == "none printed"
    assert "- p: A paper" in text
    assert "±" not in text.split("\n\n")[1]  # of one seed there is no spread


def test_a_row_that_is_quoted_shows_its_number_and_why_it_is_not_run(work, done, tmp_path):
    (work / "quoted.yaml").write_text(TABLE + "  - {name: TAKD, quoted: nobody knows how}\n")
    entry = {"source": "p", "data": "digits", "teacher": "teacher", "student": "cifar_resnet20"}
    other = entry | {"source": "q", "accuracy": {"TAKD": 71.0}}
    published = Published({"p": "A paper", "q": "Another"}, {}, [entry | {"accuracy": {"TAKD": 72.0}}, other])
    table = read_table(work / "quoted.yaml")
    pair = {
        "teacher_name": str(work / "teacher"),
        "student_name": "cifar_resnet20",
        "dataset_name": str(work / "digits"),
    }
    table = replace(table, rows=tuple(replace(r, layers=(*r.layers, pair)) if r.quoted else r for r in table.rows))
    text = run_table(table, argv(work, "done", seeds=2, seed=7), published)
    line = cells(text, "TAKD")
    assert (line["paper %"], line["ours, last epoch %"], line["seeds"], line["steps"]) == ("72.00 (p)", "-", "0", "-")
    assert of_kind(text, "TAKD: not run, nobody knows how")
    assert of_kind(text, "TAKD: q prints 71.00")
    assert not of_kind(text, "not one protocol")
    assert run(work, "done", seeds=2, seed=7) == done


TIMES = """
title: The cost
measure: time
reference: a tenth
settings: {optim: sgd, temperature: 4.0, he_da: paper}
rows:
  - {name: a tenth, settings: {he_da_ratio: 0.1}}
  - {name: all, settings: {he_da_ratio: 1.0}}
"""


@pytest.mark.slow
def test_the_time_of_an_epoch_counts_the_images_that_are_added(work):
    (work / "times.yaml").write_text(TIMES)
    text = run(work, "times", read_table(work / "times.yaml"), seeds=1)
    tenth, every = (results(work, "times", row, 42) for row in ("a_tenth", "all"))
    seconds = [r["train_steps"] / r["images_per_second"] for r in (tenth, every)]
    assert every["train_steps"] > tenth["train_steps"]
    assert cells(text, "all")["ours %"] == f"{100 * (seconds[1] / seconds[0] - 1):.2f}"
    assert cells(text, "a tenth")["ours %"] == "0.00"


@pytest.mark.slow
def test_a_row_of_mutual_learning_trains_the_teacher_too(work):
    (work / "dml.yaml").write_text("rows: [{name: DML, settings: {mutual_learning: true, objective: average}}]\n")
    table = read_table(work / "dml.yaml")
    text = run(work, "dml", table, seeds=1, seed=7, teacher_name="cifar_resnet8", num_train_epochs=1)
    assert cells(text, "DML")["ours, last epoch %"] == f"{100 * results(work, 'dml', 'dml', 7)['last']['accuracy']:.2f}"
    scores = [json.loads((work / f"dml/dml/seed7/peer_{k}/scores.json").read_text()) for k in (0, 1)]
    assert scores[0]["eval_peer_0_accuracy"] == results(work, "dml", "dml", 7)["last"]["accuracy"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mutual_learning": True, "teacher_checkpoint": "x.pth"}, "leave one of them out"),
        ({"num_train_epochs": 3}, "contains another run: its num_train_epochs is 2.0, that of this run is 3.0"),
        ({"crop_padding": 0}, "contains another run: its crop_padding is 1, that of this run is 0"),
        ({"weighting": "entropy"}, "row 'KD' is defined by weighting=uniform, which a flag must not change"),
        ({"rows": "DKD"}, "--rows 'DKD' is not a row"),
        ({"seeds": 0}, "seeds=0 must be 1 or more"),
        ({"teachers": "/nowhere", "teacher_name": "cifar_wrn_16_2"}, "the weights /nowhere/wrn_16_2.pth do not exist"),
        ({"objective": "kdd"}, "unknown objective 'kdd'"),
        ({"push_to_hub": True}, "to one repository, each over the last: leave it out"),
    ],
)
def test_what_is_refused_before_anything_runs(work, done, monkeypatch, more, message):
    monkeypatch.setattr(resume, "distil_images", lambda *a, **k: pytest.fail("ran"))
    with pytest.raises(ValueError, match=message):
        run(work, "done", **({"seeds": 2, "seed": 7} | more))


def test_other_data_in_a_folder_of_the_same_name_are_refused(work, done, monkeypatch):
    """A row would average over both. A copy of the data is the same data."""
    monkeypatch.setattr(resume, "distil_images", lambda *a, **k: pytest.fail("ran"))
    write_digits(work / "others" / "digits", train=40)
    with pytest.raises(ValueError, match="contains another run: its data_files is .*, that of this run is"):
        run(work, "done", seeds=3, seed=7, dataset_name=work / "others" / "digits")
    shutil.copytree(work / "digits", work / "copied" / "digits")
    assert run(work, "done", seeds=2, seed=7, dataset_name=work / "copied" / "digits") == done


def test_a_folder_of_somebody_else_is_refused(work, done):
    (work / "done" / "kd" / "seed7" / "settings.json").rename(work / "aside.json")
    try:
        with pytest.raises(ValueError, match="contains another run"):
            run(work, "done", seeds=2, seed=7)
    finally:
        (work / "aside.json").rename(work / "done" / "kd" / "seed7" / "settings.json")
