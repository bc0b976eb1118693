"""On GPUs (`pytest -m gpu tests/test_gpu.py`): sharding, bfloat16 and compilation give what plain float32 gives.

One GPU is enough; with two, FSDP and DeepSpeed get both.
"""

import importlib.util
import sys

import pytest
import torch
from test_ranks import run
from test_sharded import JOB, WRAPPED, launcher

GPU = JOB | {"use_cpu": False, "answers": False}
BATCH = 8
ALONE = [sys.executable]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu") / "plain"
    return run(folder, 1, "rank_job_text.py", GPU, ALONE, per_device_train_batch_size=BATCH)


def losses(record):
    found = [entry["loss"] for entry in record["log"] if "grad_norm" in entry]
    assert len(found) == GPU["max_steps"]
    return found


@pytest.mark.parametrize("name", WRAPPED)
def test_a_sharded_student_is_the_plain_one(plain, tmp_path, name):
    if name == "deepspeed_zero2" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("pip install deepspeed")
    processes = min(2, torch.cuda.device_count())
    settings = {"per_device_train_batch_size": BATCH // processes}
    weights, record = run(tmp_path / "run", processes, "sharded_job.py", GPU, launcher(name, processes), **settings)
    assert record["wrapped"] == WRAPPED[name]
    assert record["teacher"]["kinds"] == ["Parameter"]
    assert not record["teacher"]["training"]
    for key, value in weights.items():
        torch.testing.assert_close(value.cpu(), plain[0][key].cpu(), rtol=0, atol=1e-5, msg=f"{key} differs")
    assert losses(record) == pytest.approx(losses(plain[1]), rel=1e-4)
    assert record["resumed"]["weights"] < 1e-5


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [({"bf16": True}, 0.03), ({"torch_compile": True}, 1e-3), ({"bf16": True, "torch_compile": True}, 0.03)],
    ids=["bf16", "compiled", "bf16 and compiled"],
)
def test_bf16_and_compilation_lose_no_more_than_rounding(plain, tmp_path, settings, tolerance):
    _, record = run(tmp_path / "run", 1, "rank_job_text.py", GPU, ALONE, per_device_train_batch_size=BATCH, **settings)
    assert losses(record) == pytest.approx(losses(plain[1]), rel=tolerance)
    assert record["scores"]["eval_kl"] == pytest.approx(plain[1]["scores"]["eval_kl"], rel=tolerance)


@pytest.mark.parametrize("name", ["fsdp", "deepspeed_zero2"])
def test_sharding_in_bf16_trains(plain, tmp_path, name):
    if name == "deepspeed_zero2" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("pip install deepspeed")
    processes = min(2, torch.cuda.device_count())
    settings = {"per_device_train_batch_size": BATCH // processes, "bf16": True}
    _, record = run(tmp_path / "run", processes, "sharded_job.py", GPU, launcher(name, processes), **settings)
    assert losses(record) == pytest.approx(losses(plain[1]), rel=0.03)
