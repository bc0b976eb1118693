"""FSDP 2 and DeepSpeed ZeRO-2 as accelerate_configs has them, on two CPU ranks: what one process gives, they give."""

import sys
from pathlib import Path

import pytest
import torch
from test_ranks import run
from text_toys import taught_model
from transformers import AutoModelForCausalLM

CONFIGS = Path(__file__).parents[1] / "accelerate_configs"
WRAPPED = {"fsdp": ["FSDP", "FSDPGPT2LMHeadModel"], "deepspeed_zero2": ["DEEPSPEED", "DeepSpeedEngine"]}
JOB = {
    "objective": "kd(scale='none')",
    "temperature": "energy(ratio=0.2)",
    "weighting": "entropy",
    "ce_weight": 0.5,
    "kd_weight": 0.5,
    "max_steps": 5,
    "evaluate_kl": True,
    "answers": True,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def whole(folder):
    return run(folder / "whole", 1, "rank_job_text.py", JOB, per_device_train_batch_size=8)


@pytest.fixture(scope="module", params=WRAPPED)
def name(request):
    """DeepSpeed compiles its reduction for CPUs on first use."""
    if request.param == "deepspeed_zero2":
        pytest.importorskip("deepspeed", reason="pip install deepspeed ninja", exc_type=ImportError)
    return request.param


def assert_same_training(whole, sharded):
    """Weights, thresholds, scores and each step's log, which are those of one process up to rounding."""
    (weights, record), (others, other_record) = whole, sharded
    assert others.keys() == weights.keys()
    for name, value in others.items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-6, msg=f"{name} differs when sharded")
    assert other_record["thresholds"] == pytest.approx(record["thresholds"], abs=1e-5)
    for key in ("eval_loss", "eval_kl", "eval_rougeL"):
        assert other_record["scores"][key] == pytest.approx(record["scores"][key], abs=1e-5)
    steps = [[entry for entry in r["log"] if "grad_norm" in entry] for r in (record, other_record)]
    assert len(steps[0]) == len(steps[1]) == 5
    for a, b in zip(*steps, strict=True):
        for key in ("loss", "ce", "kd", "weight", "temperature", "grad_norm"):
            assert b[key] == pytest.approx(a[key], abs=2e-5), f"{key} differs when sharded"


def launcher(name, processes=2):
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    return [*command, f"--config_file={CONFIGS / name}.yaml", f"--num_processes={processes}", "--main_process_port=0"]


@pytest.fixture(scope="module")
def sharded(folder, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        return run(folder / name, 2, "sharded_job.py", JOB, launcher(name), per_device_train_batch_size=4)


def test_the_student_is_wrapped_and_the_teacher_whole_on_each_rank(name, sharded):
    _, record = sharded
    assert record["wrapped"] == WRAPPED[name]
    assert record["student"]["kinds"] == ["DTensor" if name == "fsdp" else "Parameter"]
    whole = sum(parameter.numel() for parameter in taught_model().parameters())
    assert record["teacher"] == {"kinds": ["Parameter"], "numbers": whole, "training": False}


def test_the_parameters_losses_and_scores_are_those_of_one_process(whole, sharded):
    assert_same_training(whole, sharded)


def test_the_answers_are_those_of_one_process(folder, name, whole, sharded):
    answers = "dev/step-5/dev-seed10.jsonl"
    assert (folder / name / answers).read_text() == (folder / "whole" / answers).read_text()


def test_the_saved_student_loads(folder, name, sharded):
    weights, _ = sharded
    loaded = AutoModelForCausalLM.from_pretrained(folder / name / "saved").state_dict()
    for key, value in weights.items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)


def test_a_run_that_was_taken_up_ends_with_the_same_weights(sharded):
    _, record = sharded
    assert record["resumed"]["weights"] == 0
    first, again = record["resumed"]["norms"]
    assert len(first) == 5
    assert again == first


# ---- the teacher too -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_out(folder):
    job = JOB | {"shard_teacher": True}
    return run(folder / "teacher", 2, "sharded_job.py", job, launcher("fsdp"), per_device_train_batch_size=4)


def test_each_rank_holds_half_of_the_teacher(shared_out):
    _, record = shared_out
    whole = sum(parameter.numel() for parameter in taught_model().parameters())
    assert record["teacher"] == {"kinds": ["DTensor"], "numbers": whole // 2, "training": False}


def test_its_losses_and_scores_are_those_of_a_whole_teacher(whole, shared_out):
    assert_same_training(whole, shared_out)
    resumed = shared_out[1]["resumed"]
    first, again = resumed["norms"]
    assert resumed["weights"] == 0
    assert again == first
