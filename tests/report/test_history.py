"""Rows from a log history."""

import math

import pytest

from hfkd.report.history import best_row, end_losses, epoch_rows, last_row, series


def test_one_row_per_evaluation_with_mean_training_quantities():
    history = [
        {"loss": 4.0, "kd": 1.0, "learning_rate": 0.1, "epoch": 0.5, "step": 10},
        {"loss": 1.0, "kd": 4.0, "learning_rate": 0.2, "epoch": 0.75, "step": 15},
        {"eval_accuracy": 0.5, "epoch": 1.0, "step": 20},
        {"loss": 0.5, "learning_rate": 0.3, "epoch": 1.5, "step": 30},
        {"eval_accuracy": 0.6, "epoch": 2.0, "step": 40},
        {"train_runtime": 3.0, "train_loss": 1.0, "epoch": 2.0, "step": 40},
    ]
    first, second = epoch_rows(history)
    assert first == {
        "loss": pytest.approx((10 * 4 + 5 * 1) / 15),
        "kd": pytest.approx((10 * 1 + 5 * 4) / 15),
        "learning_rate": 0.2,
        "epoch": 1.0,
        "step": 20,
        "eval_accuracy": 0.5,
    }
    assert second == {"loss": 0.5, "learning_rate": 0.3, "epoch": 2.0, "step": 40, "eval_accuracy": 0.6}


def test_without_evaluation_one_row_per_epoch():
    history = [{"loss": float(step), "epoch": step / 10, "step": step} for step in range(5, 31, 5)]
    assert [(row["epoch"], row["loss"]) for row in epoch_rows(history)] == [(1.0, 7.5), (2.0, 17.5), (3.0, 27.5)]


def test_evaluations_at_one_step_share_a_row():
    history = [
        {"eval_a_accuracy": 0.1, "epoch": 0, "step": 0},
        {"eval_b_accuracy": 0.2, "epoch": 0, "step": 0},
        {"loss": 1.0, "epoch": 1.0, "step": 5},
        {"eval_a_accuracy": 0.3, "epoch": 1.0, "step": 5},
        {"train_runtime": 1.0, "epoch": 1.0, "step": 5},
        {"test_accuracy": 0.4, "epoch": 1.0, "step": 5},
    ]
    assert epoch_rows(history) == [
        {"eval_a_accuracy": 0.1, "eval_b_accuracy": 0.2, "epoch": 0, "step": 0},
        {"loss": 1.0, "eval_a_accuracy": 0.3, "test_accuracy": 0.4, "epoch": 1.0, "step": 5},
    ]


def test_best_and_last():
    rows = [{"eval_accuracy": value, "eval_loss": value, "epoch": e} for e, value in enumerate([0.2, 0.7, 0.7, 0.3])]
    rows.append({"eval_accuracy": math.nan, "loss": 1.0, "epoch": 4})
    assert best_row(rows, "eval_accuracy")["epoch"] == 1
    assert best_row(rows, "eval_loss")["epoch"] == 0
    assert last_row(rows, "eval_accuracy")["epoch"] == 3
    assert best_row(rows, "eval_f1") is None
    assert last_row([], "eval_accuracy") is None


def test_series_drops_what_cannot_be_drawn():
    history = [{"loss": math.nan, "epoch": 1}, {"loss": 2, "epoch": 2}, {"loss": 3}, {"epoch": 4}]
    assert series(history, "loss") == ([2.0], [2.0])


def test_the_losses_at_both_ends():
    history = [{"loss": 4.0, "step": 1}, {"eval_loss": 9.0, "step": 1}, {"loss": 2.0, "step": 20}, {"train_loss": 3.0}]
    assert end_losses(history) == {"first": {"step": 1, "loss": 4.0}, "last": {"step": 20, "loss": 2.0}}
    assert end_losses([{"train_loss": 3.0}]) == {"first": None, "last": None}
