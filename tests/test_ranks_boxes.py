"""A detector on two ranks is one process that accumulates the same batches: parameters, logs, evaluation."""

import pytest
import torch
from test_ranks import run

JOB = {
    "temperature": "1.0", "weighting": "entropy(temperature=4, level='item')", "ce_weight": 1.0, "kd_weight": 1.0,
    "max_steps": 3, "learning_rate": 0.05, "evaluate_kl": True, "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
}  # fmt: skip
LOGGED = ("ce", "kd", "weight", "detector_loss")


@pytest.mark.slow
def test_two_ranks_are_one_process_that_accumulates(tmp_path):
    one = run(tmp_path / "one", 1, "rank_job_boxes.py", JOB, gradient_accumulation_steps=2)
    two = run(tmp_path / "two", 2, "rank_job_boxes.py", JOB)
    (parameters, record), (others, other) = one, two
    for name, value in parameters.items():
        torch.testing.assert_close(others[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    logs = [[entry for entry in r["log"] if "kd" in entry] for r in (record, other)]
    assert len(logs[0]) == len(logs[1]) == 3
    for mine, its in zip(*logs, strict=True):
        assert [its[name] for name in LOGGED] == pytest.approx([mine[name] for name in LOGGED], rel=1e-6)
        assert its["loss"] == pytest.approx(mine["loss"], rel=1e-6)
    for scores in (record["scores"], other["scores"]):
        assert (scores["eval_images"], scores["eval_boxes"]) == (5, 7)
    assert other["scores"]["eval_kl"] == pytest.approx(record["scores"]["eval_kl"], rel=1e-6)
