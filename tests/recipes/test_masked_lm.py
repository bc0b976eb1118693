"""The recipe for masked language models, as users start it."""

import math
import shutil

import pytest
import torch
from recipe_toys import masked_flags, results, run, write_classified
from safetensors.torch import load_file
from text_tokenizer import word_tokenizer
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, pipeline

SLOTS = {"temperature": "energy", "weighting": "entropy"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_classified(tmp_path_factory.mktemp("texts"))


def test_help(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "masked_lm", "--help")
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(flag in shown for flag in ("--mask_probability", "--line_by_line", "--text_columns"))


@pytest.fixture(scope="module")
def student(folder):
    with pytest.MonkeyPatch.context() as patch:
        more = {"learning_rate": 0.02, "max_steps": 40, "eval_strategy": "steps", "eval_steps": 10, "save_steps": 10}
        flags = masked_flags(folder, folder / "student", save_strategy="steps", **more, **SLOTS)
        run(patch, "masked_lm", *flags)
    return folder / "student"


def test_it_learns_and_says_so(student):
    found = results(student)
    assert (found["status"], found["train_steps"]) == ("finished", 40)
    assert found["epochs"][-1]["eval_loss"] < math.log(16) - 0.1  # where it started: 16 tokens, all as likely
    assert all(0 <= row["eval_accuracy"] <= 1 for row in found["epochs"])
    assert "sequences_per_second" in found


def test_what_is_saved_fills_masks(student):
    fill = pipeline("fill-mask", str(student), device="cpu")
    assert len(fill("a <mask> b")) == 5
    card = (student / "README.md").read_text()
    assert 'model = AutoModelForMaskedLM.from_pretrained("student")' in card
    assert "pipeline_tag: fill-mask" in card
    assert "an item is a masked token" in card
    assert AutoModelForMaskedLM.from_pretrained(student).config.num_hidden_layers == 1


@pytest.mark.parametrize("slots", [{}, SLOTS])
def test_a_run_that_was_stopped_ends_in_the_same_student(folder, monkeypatch, tmp_path, slots):
    """In the middle of an epoch too: loaders prefetch, and masks that were drawn as they come would be others."""
    flags = {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 2, "save_total_limit": 3} | slots
    run(monkeypatch, "masked_lm", *masked_flags(folder, tmp_path / "whole", **flags))
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for name in ("checkpoint-4", "checkpoint-6"):
        shutil.rmtree(tmp_path / "stopped" / name)
    (tmp_path / "stopped" / "model.safetensors").unlink()
    run(monkeypatch, "masked_lm", *masked_flags(folder, tmp_path / "stopped", **flags))
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [session["first_step"] for session in results(tmp_path / "stopped")["sessions"]] == [0, 2]


def test_a_teacher_of_random_weights_is_for_trying(folder, monkeypatch, tmp_path):
    fresh = {"teacher_name_or_path": "bert", "teacher_from_config": True, "train_tokenizer": 60, "max_steps": 1}
    fresh["teacher_config"] = "num_hidden_layers=1,hidden_size=8,num_attention_heads=2,intermediate_size=8"
    run(monkeypatch, "masked_lm", *masked_flags(folder, tmp_path / "run", eval_strategy="no", **fresh))
    assert results(tmp_path / "run")["config"]["teacher"].startswith("BertForMaskedLM")


def without_mask(folder):
    network = BertForMaskedLM(BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, vocab_size=16))
    network.save_pretrained(folder / "no mask")
    word_tokenizer(pad_token="<pad>").save_pretrained(folder / "no mask")
    return folder / "no mask"


REFUSED = {
    "no mask token": (lambda f: {"teacher_name_or_path": without_mask(f)}, "the tokenizer has no mask token"),
    "no such column": (lambda f: {"text_columns": "body"}, "no column 'body'"),
    "a teacher that classifies": (lambda f: {"teacher_name_or_path": f / "classifier"}, "no stored weights for"),
    "rows that no text fills": (lambda f: {"max_length": 512}, "are too short for a row of max_length=512"),
    "a model that writes": (lambda f: {"student_name_or_path": "gpt2", "student_config": ""}, "GPT2Config"),
    "a share": (lambda f: {"mask_probability": 0}, "mask_probability=0.0 must be above 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_train_something_else_is_refused_before_anything_is_written(folder, monkeypatch, tmp_path, name):
    flags, message = REFUSED[name]
    shutil.copytree(folder, tmp_path / "data", ignore=shutil.ignore_patterns("student"))
    with pytest.raises(ValueError, match=message):
        run(monkeypatch, "masked_lm", *masked_flags(tmp_path / "data", tmp_path / "out", **flags(tmp_path / "data")))
    assert not (tmp_path / "out").exists()
