"""The text recipes as users start them: offline, on the real Dolly, with GPT-2-shaped models from a configuration."""

import json
import os
import runpy
import signal
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
from processes import start_script
from transformers import GPT2Config, GPT2LMHeadModel

RECIPES = Path(__file__).parents[2] / "recipes"


def run(log, recipe, *flags, fails=False):
    """What the recipe prints in a process of its own, which `fails` or ends well."""
    process = start_script(log, RECIPES / recipe, *flags)
    process.join(170)
    printed = log.read_text()
    assert process.exitcode == int(fails), printed[-4000:]
    return printed


@pytest.mark.parametrize("recipe", ["gpt2_dolly_eakd.py", "sft.py", "generate_responses.py", "evaluate_instruct.py"])
def test_help(recipe, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [recipe, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(RECIPES / recipe), run_name="__main__")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--tokenizer_name" in shown
    assert ("Random weights for the teacher" in shown) == (recipe == "gpt2_dolly_eakd.py")


@pytest.fixture(scope="module")
def dolly(data_dir, tmp_path_factory):
    """The first 3,000 rows: the split asks for the tokens of every prompt, and holds 1,500 rows out."""
    folder = tmp_path_factory.mktemp("dolly")
    with (data_dir / "dolly" / "databricks-dolly-15k.jsonl").open(encoding="utf-8") as file:
        (folder / "databricks-dolly-15k.jsonl").write_text("".join(islice(file, 3000)), encoding="utf-8")
    return folder


@pytest.fixture
def flags(data_dir, dolly, tmp_path):
    """A few short rows: the time of a run is in the 50,257 logits of each token."""
    sizes = {"teacher": {"n_embd": 8, "n_layer": 1, "n_head": 2}, "student": {"n_embd": 4, "n_layer": 1, "n_head": 1}}
    for name, size in sizes.items():
        GPT2Config(**size).save_pretrained(tmp_path / name)
    given = {"dataset_name": dolly, "tokenizer_name": data_dir / "gpt2-tokenizer"}
    given |= {"max_train_rows": 12, "max_dev_rows": 2, "max_length": 80, "max_prompt_length": 70}
    given |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "num_train_epochs": 2}
    given |= {"report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    return [f"--{name}={value}" for name, value in given.items()] + ["--use_cpu", "--bf16=False"]


def distil(flags, tmp_path, *more):
    """The flags of a run of gpt2_dolly_eakd.py."""
    networks = [f"--student_name_or_path={tmp_path / 'student'}", "--from_config"]
    networks += [f"--teacher_name_or_path={tmp_path / 'teacher'}", "--teacher_from_config"]
    return [*flags, *networks, f"--output_dir={tmp_path / 'run'}", *more]


@pytest.mark.slow
def test_a_killed_run_is_taken_up_and_its_student_is_scored(flags, data_dir, dolly, tmp_path):
    rouge = ["--eval_rouge", "--rouge_max_new_tokens=3"]
    given = distil(flags, tmp_path, *rouge)
    killed = start_script(tmp_path / "killed.log", RECIPES / "gpt2_dolly_eakd.py", *given)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoint-*/trainer_state.json")):
        assert killed.is_alive(), (tmp_path / "killed.log").read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert "Resuming from" in run(tmp_path / "again.log", "gpt2_dolly_eakd.py", *given)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "finished"
    assert len(results["sessions"]) == 2
    assert [row["epoch"] for row in results["epochs"]] == [1, 2]
    assert all("eval_rougeL" in row and "eval_loss" in row for row in results["epochs"])
    assert results["best"]["rougeL"] == max(row["eval_rougeL"] for row in results["epochs"])
    assert results["config"]["weighting"].startswith("Entropy")
    assert len(list((tmp_path / "run" / "dev").glob("step-*/dev-seed10.jsonl"))) == 2
    scored = run(
        tmp_path / "scored.log",
        "evaluate_instruct.py",
        f"--student_name_or_path={tmp_path / 'run'}",
        f"--sets_from={data_dir / 'instruct_eval'}",
        f"--dolly={dolly}",
        "--seeds=10",
        "--max_rows=2",
        "--max_new_tokens=3",
        "--max_prompt_length=64",
        f"--output_dir={tmp_path / 'scores'}",
    )
    assert "| Student | Dolly | SInst | Vicuna | S-NI | UnNI | Average |" in scored
    assert scored.count("vicuna: ROUGE-L") == 1  # though libraries give the root logger a handler meanwhile
    assert len(list((tmp_path / "scores").glob("*/*-seed10.jsonl"))) == 5


@pytest.mark.slow
def test_a_stored_teacher_is_built_by_the_first_run_alone(flags, tmp_path):
    short = [*flags, "--max_steps=2", "--eval_strategy=no", f"--teacher_cache_dir={tmp_path / 'stored'}"]
    losses = []
    for session in ("first", "second"):
        more = [f"--output_dir={tmp_path / session}", f"--teacher_name_or_path={tmp_path / 'teacher'}"]
        printed = run(tmp_path / f"{session}.log", "gpt2_dolly_eakd.py", *distil(short, tmp_path, *more))
        assert ("The teacher cache takes" in printed) == (session == "first")
        log = json.loads((tmp_path / session / "results.json").read_text())["config"]["teacher"]
        assert "k=64" in log
        state = json.loads(next((tmp_path / session).glob("checkpoint-*/trainer_state.json")).read_text())
        losses.append([row["loss"] for row in state["log_history"] if "loss" in row])
    assert losses[0] == losses[1]
    other = [f"--output_dir={tmp_path / 'other'}", f"--teacher_name_or_path={tmp_path / 'student'}"]
    printed = run(tmp_path / "other.log", "gpt2_dolly_eakd.py", *distil(short, tmp_path, *other), fails=True)
    assert f"has the outputs of {tmp_path / 'teacher'}, but" in printed


@pytest.mark.slow
def test_a_teacher_with_another_tokenizer(flags, data_dir, tmp_path):
    """A teacher with the 512 tokens of stories260K, for a student with GPT-2's; kd cannot be had of it."""
    GPT2Config(vocab_size=512, n_embd=8, n_layer=1, n_head=2).save_pretrained(tmp_path / "teacher")
    given = distil(flags, tmp_path, f"--teacher_tokenizer={data_dir / 'stories260K'}", "--teacher_max_length=300")
    refused = run(tmp_path / "refused.log", "gpt2_dolly_eakd.py", *given, "--max_steps=2", fails=True)
    assert "or an objective for two tokenizers: uld or gold" in refused
    printed = run(tmp_path / "run.log", "gpt2_dolly_eakd.py", *given, "--max_steps=2", "--objective=gold")
    assert "are matched by bytes" in printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["config"]["objective"].startswith("GOLD")
    packed = run(tmp_path / "packed.log", "gpt2_dolly_eakd.py", *given, "--objective=gold", "--packing", fails=True)
    assert "packing does not work with different tokenizers of student and teacher" in packed


@pytest.mark.slow
def test_sft_with_adapters(flags, tmp_path):
    pytest.importorskip("peft")
    GPT2LMHeadModel(GPT2Config.from_pretrained(tmp_path / "teacher")).save_pretrained(tmp_path / "teacher")
    network = [f"--model_name_or_path={tmp_path / 'teacher'}", f"--output_dir={tmp_path / 'run'}"]
    adapters = ["--use_peft", "--lora_r=2", "--lora_target_modules=c_attn", "--max_steps=2"]
    run(tmp_path / "log", "sft.py", *flags, *network, *adapters)
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "results.json").read_text())["config"]["kd_weight"] == 0
