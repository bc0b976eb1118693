"""Rows of different lengths: one process with 8 = two with 4 = one with 4 accumulated twice."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from processes import on_ranks
from test_ranks import JOBS, run, run_splits

from hfkd.training.on_policy.record import keep_texts


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return run_splits(tmp_path_factory.mktemp("text_ranks"), "language, Energy KD")


@pytest.mark.parametrize("other", ["1 x 4 x 2", "2 x 4"])
def test_the_same_parameters_losses_and_scores(runs, other):
    (whole, whole_record), (split, split_record) = runs["1 x 8"], runs[other]
    for name, parameter in whole.items():
        message = f"{name} differs between 1 x 8 and {other}"
        torch.testing.assert_close(split[name], parameter, rtol=0, atol=1e-6, msg=message)
    assert split_record["thresholds"] == pytest.approx(whole_record["thresholds"], abs=1e-5)
    for key in ("eval_loss", "eval_kl"):
        assert split_record["scores"][key] == pytest.approx(whole_record["scores"][key], abs=1e-5)
    steps = [[r for r in record["log"] if "grad_norm" in r] for record in (whole_record, split_record)]
    assert len(steps[0]) == len(steps[1]) == 5
    for a, b in zip(*steps, strict=True):
        for key in ("loss", "ce", "kd", "temperature", "weight", "grad_norm"):
            assert b[key] == pytest.approx(a[key], abs=2e-5), f"{key} differs between 1 x 8 and {other}"


def test_two_ranks_fit_the_thresholds_of_all_tokens(tmp_path):
    """32 rows of unequal lengths in batches of 6: each rank's last one is padded with rows that are there twice."""
    script, job = JOBS["language, Energy KD"]
    keywords = {"temperature": "energy(ratio=0.2, level='item')", "max_steps": 1, "per_device_train_batch_size": 6}
    records = [run(tmp_path / str(n), n, script, job, **keywords, per_device_eval_batch_size=6)[1] for n in (1, 2)]
    assert records[1]["thresholds"] == pytest.approx(records[0]["thresholds"], abs=1e-6)


def texts_of_steps(folder):
    """The lines of each step's files, one for each rank, in the order of their rows."""
    found = {}
    for path in (folder / "completions").iterdir():
        found.setdefault(path.name.split(".")[0], []).extend(path.read_text().splitlines())
    return {step: "\n".join(sorted(lines, key=lambda line: json.loads(line)["row"])) for step, lines in found.items()}


def kept_by_the_first(folder):
    """A rank whose loader has ended writes nothing more, and waits at the end of the run."""
    accelerator = Accelerator(cpu=True)
    if accelerator.is_main_process:
        rows = [{"row": row, "by": "student", "prompt": "a", "response": "b"} for row in (3, 1)]
        keep_texts(folder, 2, rows, accelerator)
    accelerator.wait_for_everyone()
    assert [path.name for path in (Path(folder) / "completions").iterdir()] == ["step-2.rank-0.jsonl"]


@pytest.mark.slow
def test_a_rank_without_a_batch_keeps_no_other_waiting(tmp_path):
    codes = on_ranks(tmp_path / "log", 2, kept_by_the_first, str(tmp_path))
    assert codes == [0, 0], (tmp_path / "log-0").read_text()[-2000:]
    lines = (tmp_path / "completions" / "step-2.rank-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [1, 3]


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(tmp_path):
    """The student's, the teacher's and the rows' own responses, each in some of the steps."""
    script, job = JOBS["language, Energy KD"]
    written = {"on_policy": 0.5, "seq_kd": True, "on_policy_max_new_tokens": 6, "log_completions": True}
    sizes = {1: 8, 2: 4}
    (whole, whole_record), (split, split_record) = (
        run(tmp_path / str(n), n, script, job | written, per_device_train_batch_size=size) for n, size in sizes.items()
    )
    texts = [texts_of_steps(tmp_path / str(n)) for n in sizes]
    assert len([*(tmp_path / "2" / "completions").glob("step-*.rank-1.jsonl")]) == 5
    assert texts[0] == texts[1]
    assert len(texts[0]) == 5
    assert len({text.split('"by": "')[1].split('"')[0] for text in texts[0].values()}) == 2
    for name, parameter in whole.items():
        torch.testing.assert_close(split[name], parameter, rtol=0, atol=1e-6)
    steps = [[r for r in record["log"] if "grad_norm" in r] for record in (whole_record, split_record)]
    for a, b in zip(*steps, strict=True):
        for key in ("loss", "kd", "temperature", "weight", "grad_norm", "completion_length", "completion_ended"):
            assert b[key] == pytest.approx(a[key], abs=2e-5), key


def test_two_ranks_with_packed_rows_are_one(tmp_path):
    """16 rows of one to three documents: every number is of documents, and each is counted once."""
    script, job = JOBS["language, Energy KD"]
    sizes = {1: 6, 2: 3}
    runs = [
        run(tmp_path / str(n), n, script, job | {"packed": True}, per_device_train_batch_size=size, max_steps=2)
        for n, size in sizes.items()
    ]
    (whole, whole_record), (split, split_record) = runs
    assert split_record["thresholds"] == pytest.approx(whole_record["thresholds"], abs=1e-5)
    for key in ("eval_loss", "eval_kl"):
        assert split_record["scores"][key] == pytest.approx(whole_record["scores"][key], abs=1e-5)
    for name, parameter in whole.items():
        torch.testing.assert_close(split[name], parameter, rtol=0, atol=1e-6)
    steps = [[r for r in record["log"] if "grad_norm" in r] for record in (whole_record, split_record)]
    assert len(steps[0]) == 2
    for a, b in zip(*steps, strict=True):
        for key in ("loss", "ce", "kd", "temperature", "weight", "grad_norm"):
            assert b[key] == pytest.approx(a[key], abs=2e-5), key
