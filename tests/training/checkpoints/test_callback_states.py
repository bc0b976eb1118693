"""Callbacks that count go on counting in a resumed run."""

import pytest
from toys import Net, Rows, arguments, teacher
from transformers import EarlyStoppingCallback

from hfkd import DistillationTrainer


def make(folder, patience, **keywords):
    plan = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 9}
    plan |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 0.0}
    callbacks = [EarlyStoppingCallback(one) for one in patience]
    parts = {"train_dataset": Rows(80), "eval_dataset": Rows(8, seed=1), "callbacks": callbacks}
    return DistillationTrainer(Net(), teacher(), arguments(folder, **plan | keywords), **parts)


@pytest.mark.parametrize("patience", [[3], [3, 5]])
def test_early_stopping_counts_on(tmp_path, patience):
    whole = make(tmp_path, patience)
    whole.train()
    assert whole.state.global_step == 4  # the first evaluation is the best
    again = make(tmp_path, patience)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.state.global_step == 4


def test_the_callers_patience_holds(tmp_path):
    make(tmp_path, [3]).train()
    patient = make(tmp_path, [5])
    patient.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert patient.state.global_step == 6


def test_a_callback_that_the_run_did_not_have_starts_anew(tmp_path):
    make(tmp_path, [], max_steps=3).train()
    stopping = make(tmp_path, [2])
    stopping.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert stopping.state.global_step == 5
