"""On GPUs (`pytest -m gpu tests/test_gpu.py`): sharding, bfloat16 and compilation give what plain float32 gives.

One GPU is enough; with two, FSDP and DeepSpeed get both.
"""

import importlib.util
import sys

import pytest
import torch
from test_no_waiting import images
from test_ranks import run
from test_sharded import JOB, WRAPPED, launcher
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.models import image_classifier
from hfkd.teachers.image_cache.device_store import DeviceStore

GPU = JOB | {"use_cpu": False, "answers": False}
BATCH = 8
GPU_DEVICE = torch.device("cuda", 0)
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


# ---- the image step --------------------------------------------------------------------------------------------------


def image_trainer(folder, **settings):
    slots = {"temperature": "energy(thresholds=(-9.0, -5.0))", "weighting": "entropy", "max_steps": 60}
    args = arguments(folder, **(slots | {"use_cpu": False, "learning_rate": 0.01} | settings))
    torch.manual_seed(0)
    student, teacher = image_classifier("cifar_resnet8", 10), image_classifier("cifar_resnet20", 10)
    return DistillationTrainer(student, teacher, args, train_dataset=images())


def trained(folder, **settings):
    trainer = image_trainer(folder, **settings)
    trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_stored_teacher_on_the_device_is_the_live_one(tmp_path):
    _, live = trained(tmp_path / "live")
    cold, cold_losses = trained(tmp_path / "cold", teacher_cache_dir=str(tmp_path / "cache"))
    warm, warm_losses = trained(tmp_path / "warm", teacher_cache_dir=str(tmp_path / "cache"))
    assert isinstance(warm.cached_teacher.store, DeviceStore)
    assert cold.cached_teacher.hits < cold.cached_teacher.rows
    assert warm.cached_teacher.hits == warm.cached_teacher.rows
    assert cold_losses == pytest.approx(live, rel=1e-2)
    assert warm_losses == pytest.approx(cold_losses, rel=1e-2)


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_a_step_waits_for_nothing(tmp_path, cached):
    """What tests/test_no_waiting.py shows of the forward pass on a machine without a GPU, backward included."""
    trainer = image_trainer(tmp_path / "run", teacher_cache_dir=str(tmp_path / "cache") if cached else None)
    batches = [trainer._prepare_inputs(batch) for batch in trainer.get_train_dataloader()]
    for warmed_up in (False, True):
        torch.cuda.set_sync_debug_mode("error" if warmed_up else "default")
        try:
            for batch in batches:
                trainer.training_step(trainer.model, batch, trainer._get_num_items_in_batch([batch], GPU_DEVICE))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_cuda_graphs_change_nothing_but_rounding(tmp_path):
    _, plain = trained(tmp_path / "plain")
    settings = {"torch_compile": True, "torch_compile_mode": "reduce-overhead"}
    _, graphs = trained(tmp_path / "graphs", **settings)
    assert graphs == pytest.approx(plain, rel=1e-2)
