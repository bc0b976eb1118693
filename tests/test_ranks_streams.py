"""Streams of tokens on two ranks are read as one process reads them."""

import json
import os
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from processes import on_ranks
from text_toys import TokenRows, language_model, taught_model, tokenizer
from toys import arguments

from hfkd import DistillationTrainer

SETTINGS = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 4, "max_steps": 6}
SHARDS = (1, 2, 3)  # accelerate gives each rank shards of its own, once there are as many as ranks


class Sized(torch.utils.data.IterableDataset):
    """A stream that says how long it is."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)


def trainer(folder, rows, scored, **settings):
    return DistillationTrainer(
        language_model(),
        taught_model(),
        arguments(folder, **(SETTINGS | settings)),
        processing_class=tokenizer(),
        train_dataset=rows,
        eval_dataset=scored,
    )


def stream_of(rows, shards):
    return Dataset.from_list(rows).to_iterable_dataset(num_shards=shards)


def on_this_rank(folder):
    """What this rank finds, in a file of its own; without ranks, of the rows alone."""
    rows, scored = TokenRows(14).rows, TokenRows(13, seed=3).rows
    ranked = "RANK" in os.environ
    sets = [scored, *([Sized(scored), *(stream_of(scored, shards) for shards in SHARDS)] if ranked else [])]
    losses = [trainer(folder, rows, one, evaluate_kl=True).evaluate() for one in sets]
    scans = [
        trainer(folder, one, scored, temperature="energy").scan_training_set(energy_temperature=2.0).energy.tolist()
        for one in (rows, *([Sized(rows)] if ranked else []))
    ]
    found = {"losses": [[one["eval_loss"], one["eval_kl"]] for one in losses], "scans": scans}
    if ranked:
        run = trainer(folder, stream_of(rows, 3), scored, eval_strategy="epoch")
        run.train()
        found["evaluated"] = [entry["step"] for entry in run.state.log_history if "eval_loss" in entry]
    Path(f"{folder}-{os.environ.get('RANK', 'one')}.json").write_text(json.dumps(found))


def test_streams_are_scored_scanned_and_ended_alike(tmp_path):
    """Rows that fill the last batch were counted twice; ranks with shards of their own waited for each other."""
    folder = str(tmp_path / "run")
    assert on_ranks(tmp_path / "log", 2, on_this_rank, folder) == [0, 0], (tmp_path / "log-0").read_text()[-2000:]
    on_this_rank(str(tmp_path / "alone"))
    one, *ranks = (json.loads((tmp_path / name).read_text()) for name in ("alone-one.json", "run-0.json", "run-1.json"))
    for found in ranks:
        for losses in found["losses"]:
            assert losses == pytest.approx(one["losses"][0], abs=1e-6)
        for scan in found["scans"]:
            assert scan == pytest.approx(one["scans"][0], abs=1e-5)
        assert found["evaluated"] == [4, 6]  # of 14 rows an epoch has 4 steps of 4
