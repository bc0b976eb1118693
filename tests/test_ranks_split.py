"""A student whose layers are split over two ranks (tensor parallelism) trains and counts as on one."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from processes import on_ranks, script
from rank_job_split import llama
from transformers import AutoModelForCausalLM

JOB = {"temperature": "energy(ratio=0.2)", "weighting": "entropy", "ce_weight": 0.5, "kd_weight": 0.5}
LATER = Version(transformers.__version__) >= Version("5.23")


@pytest.mark.slow
@pytest.mark.skipif(not LATER, reason="earlier versions of Trainer do not take such a student")
def test_two_ranks_that_share_a_student_train_and_count_as_one(tmp_path):
    llama().save_pretrained(tmp_path / "student")
    job = json.dumps(JOB | {"folder": str(tmp_path / "student"), "evaluate_kl": True})
    records, weights = [], []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        out.mkdir()
        codes = on_ranks(out / "log", ranks, script, str(Path(__file__).parent / "rank_job_split.py"), str(out), job)
        assert codes == [0] * ranks, (out / "log-0").read_text()[-4000:]
        records.append(json.loads((out / "record.json").read_text()))
        weights.append(AutoModelForCausalLM.from_pretrained(out / "saved").state_dict())
    whole, split = records
    assert split["batch"] == whole["batch"] == 8
    assert split["thresholds"] == pytest.approx(whole["thresholds"], abs=1e-5)
    assert split["scores"]["eval_rows"] == whole["scores"]["eval_rows"] == 13
    for key in ("eval_loss", "eval_kl"):
        assert split["scores"][key] == pytest.approx(whole["scores"][key], abs=1e-5)
    for key in ("loss", "ce", "kd", "weight", "grad_norm", "teacher_accuracy"):
        values = [[entry[key] for entry in record["log"] if key in entry] for record in records]
        assert values[1] == pytest.approx(values[0], abs=2e-5), key
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-5)
