"""Rows from a log history."""

import math

import pytest

from hfkd.reports.history import Choice, best_row, end_losses, epoch_rows, last_row, other_evaluations, series


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


def entries(steps, logging, evaluation, per_epoch):
    """The log of a run of `steps` steps that logs and evaluates every so many, in Trainer's order."""
    history = []
    for step in range(1, steps + 1):
        at = {"epoch": step / per_epoch, "step": step}
        history += [{"loss": float(step), **at}] if step % logging == 0 else []
        history += [{"eval_accuracy": step / 100, **at}] if evaluation and step % evaluation == 0 else []
    return [*history, {"train_runtime": 1.0, "epoch": steps / per_epoch, "step": steps}]


@pytest.mark.parametrize("steps", [28, 30, 32])
@pytest.mark.parametrize("per_epoch", [5, 8, 10])
def test_four_evaluations_are_four_rows_wherever_epochs_end(steps, per_epoch):
    rows = epoch_rows(entries(steps, 4, 7, per_epoch))
    assert [(row["step"], row["eval_accuracy"]) for row in rows] == [(s, s / 100) for s in (7, 14, 21, 28)]
    assert rows[2]["loss"] == pytest.approx((16 * 2 + 20 * 4) / 6)  # of steps 15 to 20, at 16 and 20


def test_an_evaluation_after_training_leaves_the_epochs_apart():
    history = [*entries(30, 5, 0, 10), {"eval_accuracy": 0.5, "epoch": 3.0, "step": 30}]
    assert [row["epoch"] for row in epoch_rows(history)] == [1, 2, 3]
    assert epoch_rows(history)[-1]["eval_accuracy"] == 0.5
    assert all("loss" in row for row in epoch_rows(history))


def test_logged_throughput_is_no_closing_summary():
    """With `include_num_input_tokens_seen`, Trainer logs `train_runtime` at every step."""
    history = [{"loss": 2.0, "train_runtime": 1.0, "epoch": 1.0, "step": 5}]
    assert epoch_rows(history) == history


def test_what_counts_from_the_start_of_training_is_not_averaged():
    history = [
        {"loss": 2.0, "train_runtime": 1.0, "train_tokens_per_second": 100.0, "epoch": 0.5, "step": 5},
        {"loss": 2.0, "train_runtime": 2.0, "train_tokens_per_second": 120.0, "epoch": 1.0, "step": 10},
    ]
    assert epoch_rows(history) == history[1:]


def test_a_part_that_is_in_some_entries_is_averaged_over_these():
    """Such as the cross-entropy of on-policy training, where the last steps may be the student's own texts."""
    history = [
        {"loss": 4.0, "ce": 1.0, "epoch": 0.2, "step": 10},
        {"loss": 4.0, "ce": 4.0, "epoch": 0.3, "step": 15},
        {"loss": 4.0, "epoch": 0.5, "step": 20},
        {"eval_loss": 1.0, "epoch": 0.5, "step": 20},
    ]
    (row,) = epoch_rows(history)
    assert row["ce"] == pytest.approx((10 * 1 + 5 * 4) / 15)


def test_steps_that_were_left_out_do_not_count():
    history = [
        {"loss": 4.0, "skipped_steps": 3, "epoch": 0.5, "step": 5},
        {"loss": math.nan, "skipped_steps": 8, "epoch": 1.0, "step": 10},
        {"loss": 1.0, "skipped_steps": 2, "epoch": 1.5, "step": 15},  # by a resumed process
        {"eval_accuracy": 0.5, "epoch": 1.5, "step": 15},
    ]
    (row,) = epoch_rows(history)
    assert row["loss"] == pytest.approx((2 * 4 + 3 * 1) / 5)
    assert row["skipped_steps"] == 2


def test_other_sets_have_no_row():
    other = {"eval_accuracy": 0.9, "epoch": 1.0, "step": 5, "other_set_rows": 64}
    history = [{"loss": 1.0, "epoch": 1.0, "step": 5}, {"eval_accuracy": 0.5, "epoch": 1.0, "step": 5}, other]
    assert epoch_rows(history) == [{"loss": 1.0, "eval_accuracy": 0.5, "epoch": 1.0, "step": 5}]
    assert other_evaluations(history) == [other]


def test_best_and_last():
    rows = [{"eval_accuracy": value, "eval_loss": value, "epoch": e} for e, value in enumerate([0.2, 0.7, 0.7, 0.3])]
    rows.append({"eval_accuracy": math.nan, "loss": 1.0, "epoch": 4})
    assert best_row(rows, Choice.by_name("eval_accuracy"))["epoch"] == 1
    assert best_row(rows, Choice.by_name("eval_loss"))["epoch"] == 0
    assert best_row(rows, Choice("eval_accuracy", greater_is_better=False))["epoch"] == 0
    apart = [{"eval_kl": 0.5, "epoch": 1, "step": 1}, {"eval_kl": 0.2, "epoch": 2, "step": 2}]
    assert best_row(apart, Choice.by_name("eval_kl"))["epoch"] == 2
    assert last_row(rows, "eval_accuracy")["epoch"] == 3
    assert best_row(rows, Choice.by_name("eval_f1")) is None
    assert last_row([], "eval_accuracy") is None


def test_series_drops_what_cannot_be_drawn():
    history = [{"loss": math.nan, "epoch": 1}, {"loss": 2, "epoch": 2}, {"loss": 3}, {"epoch": 4}]
    assert series(history, "loss") == ([2.0], [2.0])


def test_the_losses_at_both_ends():
    history = [{"loss": 4.0, "step": 1}, {"eval_loss": 9.0, "step": 1}, {"loss": 2.0, "step": 20}, {"train_loss": 3.0}]
    assert end_losses(history) == {"first": {"step": 1, "loss": 4.0}, "last": {"step": 20, "loss": 2.0}}
    assert end_losses([{"train_loss": 3.0}]) == {"first": None, "last": None}
