"""A search of hyperparameters without an objective seeks the smallest loss, not the smallest accuracy."""

import pytest
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer

optuna = pytest.importorskip("optuna")
SCORED = {"eval_strategy": "steps", "eval_steps": 3, "evaluate_kl": True}


def searched(folder, direction="minimize", evaluated=None, **keywords):
    evaluated = evaluated or Rows(13, seed=3)
    args = arguments(folder, **SCORED)
    data = {"train_dataset": Rows(), "eval_dataset": evaluated, "model_init": lambda trial: Net()}
    trainer = DistillationTrainer(None, teacher(), args, **data, **keywords)
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", [0.1])},
        n_trials=1,
        direction=direction,
        backend="optuna",
    )
    return best.objective, next(entry for entry in trainer.state.log_history if "eval_loss" in entry)


def test_the_loss_is_compared(tmp_path):
    found, metrics = searched(tmp_path)
    assert found == metrics["eval_loss"]
    assert metrics["eval_accuracy"] >= 0


def test_metrics_of_ones_own_are_added_up_as_trainer_does(tmp_path):
    own = {"compute_metrics": lambda prediction: {"one": 1.0, "two": 2.0}}
    assert searched(tmp_path, "maximize", **own)[0] == 3


def test_what_has_no_such_loss_is_refused(tmp_path):
    with pytest.raises(ValueError, match="would look for the largest eval_loss: pass compute_objective"):
        searched(tmp_path, "maximize")
    with pytest.raises(ValueError, match="evaluation gives none of that name: pass compute_objective"):
        searched(tmp_path, evaluated={"near": Rows(13), "far": Rows(13)})
