"""ROUGE-L of what the student writes while it trains."""

import shutil

import pytest
import torch
from datasets import Dataset
from text_toys import TokenRows, language_model, taught_model, tokenizer
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.evaluation.callback import METRIC, RougeCallback


def test_answers_of_the_best_weights_are_those_of_their_step(tmp_path):
    """An evaluation after training is of the weights that were reloaded, and not of the last step's."""
    settings = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2,
        "load_best_model_at_end": True, "metric_for_best_model": METRIC, "evaluate_teacher": False,
    }  # fmt: skip
    rows, words = TokenRows(8), tokenizer()
    args = arguments(tmp_path, **settings)
    trainer = DistillationTrainer(
        language_model(), taught_model(), args, train_dataset=rows, eval_dataset=rows, processing_class=words
    )
    dev = Dataset.from_dict({"prompt": ["w3 w4"], "response": ["w5"]})
    trainer.add_callback(RougeCallback(trainer, dev, [1], max_prompt_length=4, max_new_tokens=2))
    trainer.train()
    dev, best = tmp_path / "dev", int(trainer.state.best_model_checkpoint.rpartition("-")[2])
    assert sorted(folder.name for folder in dev.iterdir()) == ["step-1", "step-2"]
    shutil.rmtree(dev)
    trainer.evaluate()
    assert best == 1  # of equal scores the first
    assert [folder.name for folder in dev.iterdir()] == ["step-1"]


def test_an_evaluation_of_other_rows_has_no_score_of_the_dev_rows(tmp_path):
    rows, words = TokenRows(8), tokenizer()
    args = arguments(tmp_path, max_steps=1, eval_strategy="steps", evaluate_teacher=False)
    networks = language_model(), taught_model()
    trainer = DistillationTrainer(*networks, args, train_dataset=rows, eval_dataset=rows, processing_class=words)
    dev = Dataset.from_dict({"prompt": ["w3 w4"], "response": ["w5"]})
    trainer.add_callback(RougeCallback(trainer, dev, [1], max_prompt_length=4, max_new_tokens=2))
    trainer.train()
    assert METRIC in trainer.evaluate()
    scored = len([entry for entry in trainer.state.log_history if METRIC in entry])
    found = trainer.evaluate(TokenRows(4), metric_key_prefix="test")
    assert "test_loss" in found
    assert METRIC not in found
    assert len([entry for entry in trainer.state.log_history if METRIC in entry]) == scored


@pytest.mark.parametrize("float32", [True, False])
def test_answers_are_written_in_the_precision_of_evaluations(tmp_path, float32):
    """They came from autocast, so that the best checkpoint was chosen by other answers than its weights give."""
    rows, words, seen = TokenRows(8), tokenizer(), []
    settings = {"max_steps": 1, "eval_strategy": "steps", "evaluate_teacher": False, "bf16": True}
    args = arguments(tmp_path, float32_evaluation=float32, **settings)
    student = language_model()
    trainer = DistillationTrainer(
        student, taught_model(), args, train_dataset=rows, eval_dataset=rows, processing_class=words
    )
    dev = Dataset.from_dict({"prompt": ["w3 w4"], "response": ["w5"]})
    trainer.add_callback(RougeCallback(trainer, dev, [1], max_prompt_length=4, max_new_tokens=2))
    student.lm_head.register_forward_hook(lambda head, _, logits: seen.append((head.training, logits.dtype)))
    trainer.train()
    assert {dtype for training, dtype in seen if training} == {torch.bfloat16}
    assert {dtype for training, dtype in seen if not training} == {torch.float32 if float32 else torch.bfloat16}
    assert "_original_forward" in vars(student)
    assert vars(student)["forward"] != vars(student)["_original_forward"]
