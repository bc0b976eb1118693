"""A recipe does what was typed, or refuses it; each command runs."""

import json
import logging
import re
import shutil
from dataclasses import fields
from enum import Enum
from types import NoneType
from typing import get_type_hints

import pytest
import torch
import yaml
from digit_files import flags as plain_digit_flags
from recipe_toys import RECIPES, answer_flags, given, image_flags, response_flags, results, run, text_flags, write_toys
from toys import arguments

import hfkd.utils.parsing
import hfkd.utils.precedence
from hfkd.evaluation.callback import RougeArguments
from hfkd.experiments.distil import network_to_evaluate
from hfkd.models import image_classifier
from hfkd.utils.setting_types import TextLoader, typed


def digit_flags(folder, out, **more):
    return plain_digit_flags(folder / "digits", output_dir=out, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_toys(tmp_path_factory.mktemp("typed"))


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "used"), [(False, "no"), (True, "bf16")])
def test_the_flags_precision_is_that_of_the_run_and_of_its_stored_teacher(folder, monkeypatch, tmp_path, flag, used):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no" if flag else "bf16")
    stored = {"teacher_cache_dir": tmp_path / "cache", "eval_strategy": "no"}
    run(monkeypatch, "gpt2_dolly_eakd", *text_flags(folder, tmp_path / "text", bf16=flag, **stored))
    run(monkeypatch, "cifar100_energy_kd", *image_flags(folder, tmp_path / "images", bf16=flag))
    for name in ("text", "images"):
        config = results(tmp_path / name)["config"]
        assert (config["mixed_precision"], config["bf16"]) == (used, flag)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "flags"), [("gpt2_dolly_eakd", text_flags), ("cifar100_energy_kd", image_flags)])
def test_a_stored_teacher_where_the_machine_computes_in_bfloat16(folder, monkeypatch, tmp_path, recipe, flags):
    """As the docs say it, with no precision named: the first run stores the teacher, the second reads it."""
    pages = [RECIPES.parent / "docs" / "tasks" / name for name in ("images.md", "language.md")]
    told = [found for page in pages for found in re.findall(r"`(--teacher_cache_dir FOLDER)`", page.read_text())]
    assert len(told) == 2  # for images, and for texts
    cache = told[0].replace("FOLDER", str(tmp_path / "cache")).split()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    losses = []
    for name in ("first", "second"):
        given = flags(folder, tmp_path / name, eval_strategy="no", max_steps=2)
        run(monkeypatch, recipe, *(flag for flag in given if "bf16" not in str(flag)), *cache)
        found = results(tmp_path / name)
        assert (found["config"]["mixed_precision"], found["config"]["bf16"]) == ("bf16", True)
        state = json.loads(next((tmp_path / name).glob("checkpoint-*/trainer_state.json")).read_text())
        losses.append([row["loss"] for row in state["log_history"] if "loss" in row])
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# ---- the output folder -----------------------------------------------------------------------------------------------


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        ("cifar100_energy_kd", lambda f: image_flags(f, f / "teacher")),
        ("cifar100_energy_kd", lambda f: image_flags(f, f / "teacher", student_name=f / "teacher", teacher_name="x")),
        ("cifar100_energy_kd", lambda f: image_flags(f, f / "digits" / "run")),
        ("takd", lambda f: [*digit_flags(f, f / "teacher"), "--chain", f / "teacher", "cifar_resnet8"]),
        ("dml", lambda f: [*digit_flags(f, f / "teacher"), "--peer_names", "cifar_resnet8", f / "teacher"]),
        ("train_teacher", lambda f: [*digit_flags(f, f / "teacher"), f"--network_name={f / 'teacher'}"]),
        ("reproduce", lambda f: [*image_flags(f, f / "teacher"), "--table=methods_cifar100"]),
        ("gpt2_dolly_eakd", lambda f: text_flags(f, f / "large")),
        ("gpt2_dolly_eakd", lambda f: text_flags(f, f / "small")),
        ("gpt2_dolly_eakd", lambda f: text_flags(f, f / "link")),
        ("gpt2_dolly_eakd", lambda f: text_flags(f, f / "x", teacher_cache_dir=f / "x" / "checkpoint-1")),
        ("sft", lambda f: given(model_name_or_path=f / "small", output_dir=f / "small", use_cpu=True, bf16=False)),
        ("evaluate_instruct", lambda f: answer_flags(f, f / "small")),
        ("generate_responses", lambda f: response_flags(f, f / "large")),
    ],
)
def test_an_output_folder_that_is_an_input_is_refused_and_stays_whole(folder, monkeypatch, recipe, flags):
    if not (folder / "link").exists():
        (folder / "link").symlink_to(folder / "small")
        (folder / "x" / "checkpoint-1").mkdir(parents=True)
        (folder / "x" / "checkpoint-1" / "manifest.json").write_text("{}")
    before = content(folder)
    with pytest.raises(ValueError, match="choose another output_dir$"):
        run(monkeypatch, recipe, *flags(folder))
    assert content(folder) == before


def test_a_network_is_scored_where_it_lies(folder, monkeypatch, capsys):
    before = content(folder / "teacher")
    flags = digit_flags(folder, folder / "teacher", network_name=folder / "teacher")
    run(monkeypatch, "train_teacher", *flags, "--evaluate_only")
    assert "eval_accuracy" in capsys.readouterr().out
    assert content(folder / "teacher") == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--network_name=cifar_resnet8"],
            "'cifar_resnet8' is an architecture with random weights: pass its checkpoint",
        ),
        (["--network_name=owner/name", "--new_head"], "would evaluate random weights: leave one of them out"),
    ],
)
def test_random_weights_are_not_scored(folder, monkeypatch, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        run(monkeypatch, "train_teacher", *digit_flags(folder, tmp_path / "run"), *flags, "--evaluate_only")


def test_a_network_with_its_classes_in_another_order_is_not_scored(tmp_path):
    image_classifier("cifar_resnet8", 3, label_names=["cat", "dog", "fox"]).save_pretrained(tmp_path)
    assert network_to_evaluate(str(tmp_path), 3, None, ["cat", "dog", "fox"]).config.num_labels == 3
    with pytest.raises(ValueError, match="in another order .its class 0 is 'cat', that of the data 'fox'.: use `hfkd"):
        network_to_evaluate(str(tmp_path), 3, None, ["fox", "cat", "dog"])
    with pytest.raises(ValueError, match="does not have the classes of the data"):
        network_to_evaluate(str(tmp_path), 3, None, ["fox", "cat", "hen"])


def test_a_stage_that_would_write_over_its_own_teacher_is_refused(folder, monkeypatch, tmp_path):
    first = tmp_path / "run" / "1_cifar_resnet8x4"
    shutil.copytree(folder / "teacher", first)
    before = content(first)
    flags = [*digit_flags(folder, tmp_path / "run", pages=False), "--chain", first, "cifar_resnet8x4"]
    with pytest.raises(ValueError, match="is the folder of teacher_name="):
        run(monkeypatch, "takd", *flags)
    assert content(first) == before


# ---- a flag and the protocol's defaults ------------------------------------------------------------------------------


def logged(out, name):
    return [row[name] for row in state(out)["log_history"] if name in row]


def state(out):
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in out.glob("checkpoint-*"))
    return json.loads((out / f"checkpoint-{steps[-1]}" / "trainer_state.json").read_text())


def undecayed(flags):
    return [flag for flag in flags if not flag.startswith("--lr_decay_epochs")]


def test_a_schedule_that_was_typed_is_the_one_that_trains(folder, monkeypatch, caplog, tmp_path):
    hfkd.utils.precedence._say.cache_clear()
    caplog.set_level(logging.INFO, "hfkd")
    flags = undecayed(image_flags(folder, tmp_path, lr_scheduler_type="cosine", warmup_steps=3))
    run(monkeypatch, "cifar100_energy_kd", *flags)
    expected = [0, 0.05 / 3, 0.1 / 3, 0.05, 0.05 * 0.75, 0.05 * 0.25]
    assert logged(tmp_path, "learning_rate") == pytest.approx(expected)
    config = results(tmp_path)["config"]
    assert (config["lr_scheduler_type"], config["warmup_steps"]) == ("cosine", 3)
    assert "lr_decay_epochs" not in config
    assert "lr_scheduler_type=cosine replaces lr_decay_epochs=[150" in caplog.text


def test_the_protocols_decays_that_never_come_are_said(folder, monkeypatch, caplog, tmp_path):
    run(monkeypatch, "cifar100_energy_kd", *undecayed(image_flags(folder, tmp_path)))
    assert logged(tmp_path, "learning_rate") == [0.05] * 6
    assert "training ends at step 6, before epoch 150, 180, 210, 240, 270, 300 is over" in caplog.text


@pytest.mark.parametrize(
    ("flags", "metric"),
    [
        ({"metric_for_best_model": "loss"}, "loss"),
        ({"metric_for_best_model": "eval_loss", "load_best_model_at_end": True}, "eval_loss"),
        ({"load_best_model_at_end": True}, "eval_rougeL"),
        ({}, "eval_rougeL"),
    ],
)
def test_the_metric_that_was_typed_chooses_the_checkpoint(folder, monkeypatch, tmp_path, flags, metric):
    saving = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    rouge = {"eval_rouge": True, "rouge_max_new_tokens": 4}
    run(monkeypatch, "gpt2_dolly_eakd", *text_flags(folder, tmp_path, **saving, **rouge, **flags))
    scores = logged(tmp_path, "eval_rougeL" if metric == "eval_rougeL" else "eval_loss")
    assert len(scores) == 2
    assert state(tmp_path)["best_metric"] == (max(scores) if metric == "eval_rougeL" else min(scores))
    assert ("rougeL" in results(tmp_path)["best"]) is (metric == "eval_rougeL")


def test_what_was_given_beside_eval_rouge_stays(tmp_path):
    rouge, args = RougeArguments(eval_rouge=True), arguments(tmp_path, save_strategy="no", eval_strategy="no")
    given = {"load_best_model_at_end", "metric_for_best_model"}
    assert rouge.best_by_rouge(args).load_best_model_at_end
    kept = rouge.best_by_rouge(args, given)
    assert (kept.load_best_model_at_end, kept.metric_for_best_model) == (False, None)


# ---- settings files --------------------------------------------------------------------------------------------------


def test_two_config_flags_and_values_that_yaml_would_misread(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("seed: 7\nlearning_rate: 1e-2\nrun_name: 12:30\neval_strategy: no\n")
    (tmp_path / "b.yaml").write_text("learning_rate: 2e-2\noutput_dir: 2026-11-28\nflip: no\n")
    flags = [flag for flag in image_flags(folder, "x") if not flag.startswith("--output_dir")]
    run(monkeypatch, "cifar100_energy_kd", *flags, "--max_steps=1", "--config", "a.yaml", "--config", "b.yaml")
    config = results(tmp_path / "2026-11-28")["config"]
    assert (config["seed"], config["learning_rate"], config["flip"]) == (7, 0.02, False)
    assert results(tmp_path / "2026-11-28")["best"] is None


def recipes_dataclasses():
    """The dataclasses of each recipe, as its own `main` hands them to `parse`."""
    for path in sorted(RECIPES.glob("*.py")):
        with pytest.MonkeyPatch.context() as patch:
            found = []
            patch.setattr(
                hfkd.utils.parsing, "parse", lambda classes, *rest, found=found, **more: found.extend(classes) or 1 / 0
            )
            with pytest.raises(ZeroDivisionError):
                run(patch, path.stem)
        yield from ((path.stem, cls, f) for cls in found for f in fields(cls) if f.init)


def test_each_field_of_each_recipe_takes_its_default_and_no_list_of_lists():
    """Whatever a field is, what it holds by default can be written in a file, and nonsense cannot."""
    checked = 0
    for recipe, cls, f in recipes_dataclasses():
        hint, default = get_type_hints(cls)[f.name], getattr(cls, f.name, None)
        where = f"{recipe} {f.name}"
        if isinstance(default, (bool, int, float, str, NoneType)) and not isinstance(default, Enum) and default != "":
            text = TextLoader(yaml.safe_dump({"x": default})).get_single_data()["x"]
            if text is not None:
                same = {"include_num_input_tokens_seen": False}.get(f.name, default)  # to Trainer "no" is False
                assert typed(text, hint, where) == same, where
        with pytest.raises(ValueError, match=f"^{where}: "):
            typed([["a"], {"b": "c"}], hint, where)
        checked += 1
    assert checked > 1000


# ---- what is not done ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        ("cifar100_energy_kd", lambda f, out: image_flags(f, out, do_train=False), "do_train=False"),
        ("gpt2_dolly_eakd", lambda f, out: text_flags(f, out, do_train=False), "do_train=False"),
        ("gpt2_dolly_eakd", lambda f, out: text_flags(f, out, do_predict=True), "do_predict=True"),
        ("cifar100_energy_kd", lambda f, out: image_flags(f, out, do_eval=False), "do_eval=False"),
        ("cifar100_energy_kd", lambda f, out: image_flags(f, out, max_train_images=0), "max_train_images=0"),
        ("cifar100_energy_kd", lambda f, out: image_flags(f, out, max_test_images=-1), "max_test_images=-1"),
        ("cifar100_energy_kd", lambda f, out: image_flags(f, out, image_size=0), "image_size=0"),
        ("cifar100_energy_kd", lambda f, out: image_flags(f, out, max_steps=0), "max_steps=0"),
        ("gpt2_dolly_eakd", lambda f, out: text_flags(f, out, max_train_rows=0), "max_train_rows=0"),
        ("gpt2_dolly_eakd", lambda f, out: text_flags(f, out, max_dev_rows=0), "max_dev_rows=0"),
        ("evaluate_instruct", lambda f, out: answer_flags(f, out, max_rows=0), "max_rows=0"),
        ("evaluate_instruct", lambda f, out: answer_flags(f, out, max_rows=-3), "max_rows=-3"),
        ("digits_demo", lambda f, out: given(output_dir=out, seeds=0), "seeds=0"),
        ("digits_demo", lambda f, out: given(output_dir=out, labelled_images=0), "labelled_images=0"),
        ("digits_demo", lambda f, out: given(output_dir=out, ways="kd"), "'kd' is unknown"),
        (
            "cifar100_energy_kd",
            lambda f, out: image_flags(f, out, labelled_images=99),
            "labelled=99 must be from 1 to the 48 rows",
        ),
        (
            "cifar100_energy_kd",
            lambda f, out: image_flags(f, out, labelled_images=9, streaming=True, resized_crop=True),
            "labelled_images=9 needs all labels in advance",
        ),
    ],
)
def test_what_would_be_passed_over_is_refused(folder, monkeypatch, tmp_path, recipe, flags, message):
    with pytest.raises(ValueError, match=message):
        run(monkeypatch, recipe, *flags(folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ---- where training starts -------------------------------------------------------------------------------------------

SAVING = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}


@pytest.fixture(scope="module")
def earlier(folder):
    """A run of six steps at another temperature, with its checkpoints."""
    out = folder / "earlier"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, "cifar100_energy_kd", *image_flags(folder, out, **SAVING, temperature="2.0"))
    return out


def test_a_checkpoint_of_another_run_is_refused_by_its_path(folder, earlier, monkeypatch, tmp_path):
    flags = image_flags(folder, tmp_path / "run", **SAVING, resume_from_checkpoint=earlier / "checkpoint-4")
    for other, message in (
        ({"temperature": "3.0"}, r"temperature is Constant\(temperature=2.0\), that of this run is Const"),
        (
            {"temperature": "2.0", "seed": 1},
            "its seed is 42, that of this run is 1",
        ),
    ):
        with pytest.raises(ValueError, match=f"checkpoint-4 is from another run: .*{message}"):
            run(monkeypatch, "cifar100_energy_kd", *flags, *given(**other))
    assert not list((tmp_path / "run").glob("*"))
    run(monkeypatch, "cifar100_energy_kd", *flags, "--temperature=2.0")  # of this one, taken up in another folder
    assert logged(tmp_path / "run", "learning_rate")[-2:] == logged(earlier, "learning_rate")[-2:]
    assert state(tmp_path / "run")["global_step"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("way", ["flag", pytest.param("file", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("word", "steps"), [("false", 6), ("no", 6), ("true", 0), ("", 0)])
def test_a_word_says_whether_to_start_anew(folder, earlier, monkeypatch, caplog, tmp_path, way, word, steps):
    """The run is finished: taken up again it has no steps to do, started anew all six."""
    shutil.copytree(earlier, tmp_path / "run")
    (tmp_path / "a.yaml").write_text(f"resume_from_checkpoint: {word}")
    more = [f"--resume_from_checkpoint={word}"] if way == "flag" else [f"--config={tmp_path / 'a.yaml'}"]
    run(monkeypatch, "cifar100_energy_kd", *image_flags(folder, tmp_path / "run", **SAVING, temperature="2.0"), *more)
    last = results(tmp_path / "run")["sessions"][-1]
    assert (last["last_step"] - last["first_step"], last["last_step"]) == (steps, 6)
    assert ("Starting from scratch" in caplog.text) is (steps == 6)


def test_true_without_a_checkpoint_is_refused(folder, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="there is no complete checkpoint"):
        run(monkeypatch, "cifar100_energy_kd", *image_flags(folder, tmp_path, resume_from_checkpoint="true"))


@pytest.mark.parametrize("shorter", [{"num_train_epochs": 1}, {"max_steps": 5}])
def test_a_run_that_has_trained_for_longer_is_refused(folder, earlier, monkeypatch, tmp_path, shorter):
    shutil.copytree(earlier, tmp_path / "run")
    before = content(tmp_path / "run")
    flags = image_flags(folder, tmp_path / "run", **SAVING | {"temperature": "2.0"} | shorter)
    with pytest.raises(ValueError, match="checkpoint-6 was trained for 6 steps, but this run ends at step"):
        run(monkeypatch, "cifar100_energy_kd", *flags)
    assert content(tmp_path / "run") == before


def test_a_run_may_be_made_longer(folder, earlier, monkeypatch, tmp_path):
    shutil.copytree(earlier, tmp_path / "run")
    flags = image_flags(folder, tmp_path / "run", **SAVING | {"temperature": "2.0", "num_train_epochs": 3})
    run(monkeypatch, "cifar100_energy_kd", *flags)
    assert [(s["first_step"], s["last_step"]) for s in results(tmp_path / "run")["sessions"]] == [(0, 6), (6, 9)]
