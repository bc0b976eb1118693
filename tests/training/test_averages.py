"""Averages that are put by are the plain means, however many batches are added up at once."""

import math

import pytest
import torch
from accelerate import Accelerator
from toys import Net, Rows, arguments, teacher
from transformers import TrainerCallback

from hfkd import DistillationTrainer
from hfkd.models import Peers
from hfkd.training.averages import FOLDED, BatchAverage


@pytest.mark.parametrize("batches", [1, FOLDED - 1, FOLDED, 2 * FOLDED + 3])
def test_the_mean_is_over_items_and_not_over_batches(batches):
    average, means, counts = BatchAverage(), torch.randn(batches), [1 + i % 5 for i in range(batches)]
    for mean, count in zip(means, counts, strict=True):
        average.add({"loss": mean}, count)
        average.keep()
    expected = sum(m.item() * c for m, c in zip(means, counts, strict=True)) / sum(counts)
    assert average.read(Accelerator(cpu=True)) == {"loss": pytest.approx(expected, rel=1e-5, abs=1e-6)}
    assert average.read(Accelerator(cpu=True)) == {}


def test_what_is_forgotten_does_not_count():
    average = BatchAverage()
    average.add({"loss": torch.tensor(1.0)}, 2)
    average.keep()
    average.add({"loss": torch.tensor(float("nan"))}, 2)
    average.forget()
    assert average.read(Accelerator(cpu=True)) == {"loss": 1.0}


class OneBroken(Rows):
    def __getitem__(self, i):
        row = super().__getitem__(i)
        return row | {"pixel_values": row["pixel_values"] * (math.nan if i == 20 else 1)}


def test_an_evaluation_with_rows_that_are_nan_says_how_many(tmp_path, caplog):
    trainer = DistillationTrainer(Net(), teacher(), arguments(tmp_path), eval_dataset=OneBroken())
    assert math.isnan(trainer.evaluate()["eval_loss"])
    assert "loss: NaN or infinite for 1 of 32 rows; check the data" in caplog.text
    caplog.clear()
    trainer.evaluate(Rows())
    assert "NaN" not in caplog.text


# ---- in the trainer: with kd_weight=0 the logged loss is its only part, whatever went before -------------------------


class StopsAt(TrainerCallback):
    """Ends a run as a user's Ctrl-C does, or as a GPU that is too small for the batch."""

    def __init__(self, step, error, batch=None):
        self.step, self.error, self.batch = step, error, batch

    def on_step_end(self, args, state, control, **keywords):
        if state.global_step == self.step and self.batch in (None, state.train_batch_size):
            self.step = None
            raise self.error


def trainer(folder, **keywords):
    args = arguments(folder, ce_weight=1.0, kd_weight=0.0, max_steps=6, **keywords)
    return DistillationTrainer(Net(), None, args, train_dataset=Rows())


def logged(trainer):
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entries
    return [entry["ce"] for entry in entries], pytest.approx([entry["loss"] for entry in entries], rel=1e-4)


def test_small_parts_keep_their_digits(tmp_path):
    network = Net()
    with torch.no_grad():
        network.head.weight.mul_(1.0001)
    args = arguments(tmp_path, ce_weight=0.0, kd_weight=1e5, learning_rate=1e-9, objective="total_variation")
    made = DistillationTrainer(Net(), network, args, train_dataset=Rows())
    made.train()
    for entry in (entry for entry in made.state.log_history if "loss" in entry):
        assert 0 < entry["kd"] < 1e-4
        assert entry["kd"] == pytest.approx(entry["loss"] / 1e5, rel=1e-4)


def test_a_smaller_batch_after_one_that_did_not_fit(tmp_path):
    made = trainer(tmp_path, auto_find_batch_size=True, per_device_train_batch_size=16)
    made.add_callback(StopsAt(2, RuntimeError("CUDA out of memory."), batch=16))
    made.train()
    assert made.state.train_batch_size < 16
    parts, loss = logged(made)
    assert parts == loss


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("on_nan", ["stop", "skip", "ignore"])
def test_a_second_attempt_and_a_third(tmp_path, accumulation, on_nan):
    made = trainer(tmp_path, logging_steps=4, gradient_accumulation_steps=accumulation, on_nan=on_nan)
    made.add_callback(StopsAt(3, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        made.train()
    for _ in range(2):  # the second one ends with two steps that were not logged
        made.train()
        parts, loss = logged(made)
        assert parts == loss


def test_what_broke_in_an_earlier_attempt_is_no_fault_of_the_next_one(tmp_path):
    """Stopped between two accumulated batches, the first of which is infinite."""
    made = trainer(tmp_path, gradient_accumulation_steps=2)
    inner, calls = made.compute_loss, []

    def compute_loss(model, inputs, *a, **k):
        calls.append(None)
        if len(calls) == 1:
            inputs = inputs | {"pixel_values": inputs["pixel_values"] * torch.inf}
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner(model, inputs, *a, **k)

    made.compute_loss = compute_loss
    with pytest.raises(KeyboardInterrupt):
        made.train()
    made.train()
    assert made.state.global_step == 6


def test_a_checkpoint_that_was_put_off_is_not_written_by_the_next_attempt(tmp_path):
    """Stopped at the end of an epoch, before the evaluation that the checkpoint waits for."""
    made = trainer(tmp_path, save_strategy="steps", save_steps=4)
    made.add_callback(StopsAt(4, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        made.train()
    made.args.save_steps = 6
    made.state.save_steps = 6
    made.train()
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-*"))] == ["checkpoint-6"]


class Marked(Rows):
    """One row of the evaluation set is infinite."""

    def __init__(self, bad=(), **keywords):
        super().__init__(**keywords)
        self.images[list(bad)] = torch.inf


@pytest.mark.parametrize("bad", [(3,), range(13)])
@pytest.mark.parametrize("finite_only", [False, True])
def test_the_filter_of_nan_is_for_the_evaluation_too(tmp_path, bad, finite_only):
    args = arguments(tmp_path, evaluate_kl=True, logging_nan_inf_filter=finite_only)
    made = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(), eval_dataset=Marked(bad, n=13, seed=3))
    found = made.evaluate()
    if not finite_only or len(bad) == 13:
        assert math.isnan(found["eval_loss"])
        assert math.isnan(found["eval_kl"])
        return
    kept = [i for i in range(13) if i not in bad]
    others = torch.utils.data.Subset(Rows(n=13, seed=3), kept)
    wanted = made.evaluate(others)
    for name in ("eval_loss", "eval_kl"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-6)


# ---- what docs/concepts.md says of the log ---------------------------------------------------------------------------


class TwoViews(Rows):
    def __getitem__(self, i):
        row = super().__getitem__(i)
        return row | {"pixel_values": torch.stack([row["pixel_values"], row["pixel_values"].flip(-1)])}


SUMS = {  # and how often an image counts
    "kd": ({}, 1),
    "terms, one on features": ({"objective": "kd + 2 * at(layers='conv')"}, 1),
    "rows that are compared": ({"objective": "3 * dist"}, 1),
    "labels that are smoothed": ({"label_smoothing_factor": 0.2}, 1),
    "two views": ({"rows": TwoViews}, 2),
    "two peers": ({"networks": lambda: (Peers([Net(), Net(8, seed=3)]), None)}, 2),
}


@pytest.mark.parametrize("name", SUMS)
def test_the_loss_of_a_step_is_the_sum_of_its_logged_parts(tmp_path, name):
    given, times = dict(SUMS[name][0]), SUMS[name][1]
    rows, networks = given.pop("rows", Rows)(), given.pop("networks", lambda: (Net(), teacher()))()
    settings = {"ce_weight": 0.3, "kd_weight": 0.7, "learning_rate": 0.0, "gradient_accumulation_steps": 2}
    made = DistillationTrainer(*networks, arguments(tmp_path, max_steps=1, **settings | given), train_dataset=rows)
    made.train()
    entry = next(entry for entry in made.state.log_history if "loss" in entry)
    terms = sum(term.coefficient * entry[term.name] for term in made.distillation_loss.terms)
    whole = 0.3 * entry["ce"] + 0.7 * (terms + entry.get("relations", 0))
    assert entry["loss"] == pytest.approx(times * whole, rel=1e-4)
