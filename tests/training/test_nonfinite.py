"""NaN in a network, the loss or a gradient: named with step and rows, left out where wanted, never saved."""

import json
import logging
import math

import pytest
import torch
from processes import on_ranks
from torch import nn
from toys import Net, Rows, arguments, teacher
from transformers import TrainerCallback

from hfkd import DistillationTrainer
from hfkd.reports import ResultsCallback
from hfkd.training.forward.micro_batch import MicroBatch

MARK = 77.0  # the brightness of the images that break things
BAD = (5, 19)


class MarkedRows(Rows):
    """Rows with an index, some of which carry the mark."""

    def __init__(self, bad=BAD, **keywords):
        super().__init__(**keywords)
        self.images[list(bad), :, 0, 0] = MARK

    def __getitem__(self, i):
        return super().__getitem__(i) | {"index": i}


class BreaksAt(nn.Module):
    """A network whose logits are `value` for images with the mark."""

    def __init__(self, inner, value):
        super().__init__()
        self.inner, self.value = inner, value

    def forward(self, x):
        return self.inner(x).masked_fill((x[:, 0, 0, 0] == MARK).unsqueeze(-1), self.value)


class NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * math.nan


def nan_loss(items, temperature):
    """An objective that divides 0 by 0 for items of class 4."""
    return torch.where(items.labels == 4, math.nan, items.student.logits.sum(-1))


def nan_gradient(items, temperature):
    return NanGradient.apply(items.student.logits).sum(-1)


def make(folder, part="teacher", value=math.nan, bad=BAD, slots=None, **keywords):
    student, taught = Net(), teacher()
    student = BreaksAt(student, value) if part == "student" else student
    taught = BreaksAt(taught, value) if part == "teacher" else taught
    # the probe at construction sees the first rows, which are fine
    args = arguments(folder, **({"max_steps": 8, "save_strategy": "steps", "save_steps": 1} | keywords))
    return DistillationTrainer(student, taught, args, train_dataset=MarkedRows(bad), **(slots or {}))


def parameters(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


class Watcher(TrainerCallback):
    """The parameters before each step, and the rows of each batch."""

    def __init__(self, trainer):
        self.trainer, self.before, self.rows = trainer, [], []
        inner = trainer.compute_loss

        def compute_loss(model, inputs, *a, **k):
            self.rows.append(inputs["index"].tolist())
            return inner(model, inputs, *a, **k)

        trainer.compute_loss = compute_loss
        trainer.add_callback(self)

    def on_step_begin(self, *a, **k):
        self.before.append(parameters(self.trainer))


# ---- stop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["teacher", "student"])
def test_it_stops_with_step_rows_and_part_before_the_student_is_harmed(tmp_path, part, value):
    trainer = make(tmp_path, part, value)
    watcher = Watcher(trainer)
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    step = len(watcher.before)
    broken = [row for row in watcher.rows[-1] if row in BAD]
    rows = ", ".join(f"row {row}" for row in sorted(broken, key=watcher.rows[-1].index))
    assert broken
    assert f"step {step}: the {part}'s outputs are NaN or infinite for {rows}: " in str(caught.value)
    assert "on_nan='skip'" in str(caught.value)
    for name, value in parameters(trainer).items():
        assert torch.equal(value, watcher.before[-1][name])
    assert not (tmp_path / f"checkpoint-{step}").exists()
    assert step == 1 or (tmp_path / f"checkpoint-{step - 1}").exists()


@pytest.mark.parametrize(
    ("objective", "part"),
    [(nan_loss, "the loss, computed from finite outputs, is"), (nan_gradient, "the gradient, of a finite loss, is")],
)
def test_the_loss_and_the_gradient_are_told_from_the_networks(tmp_path, objective, part):
    trainer = make(tmp_path, part="none", slots={"objective": objective})
    with pytest.raises(FloatingPointError, match=f"step 1: {part} NaN or infinite for row "):
        trainer.train()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_inputs_that_are_broken_are_blamed_before_the_teacher(tmp_path, value):
    rows = MarkedRows(())
    rows.images[19, 1, 2, 3] = value
    trainer = DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=rows)
    with pytest.raises(FloatingPointError, match=r"step \d: the inputs are NaN or infinite for row 19: check the data"):
        trainer.train()


def test_inputs_that_are_broken_at_once_are_blamed_when_the_trainer_is_built(tmp_path):
    rows = Rows()
    rows.images[1, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="the inputs of training row 1 are NaN or infinite"):
        DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=rows)


def test_the_scan_blames_the_inputs_before_the_teacher(tmp_path):
    rows = Rows()
    rows.images[7, 0, 0, 0] = math.nan
    trainer = DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=rows, temperature="energy")
    message = r"the inputs are NaN or infinite for 1 of 32 training rows \(first at rows \[7\]\)"
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_rows_without_an_index_are_counted_in_their_batch(tmp_path):
    rows = Rows(8)
    rows.images[6] = MARK
    taught = BreaksAt(teacher(), math.nan)
    trainer = DistillationTrainer(Net(), taught, arguments(tmp_path), train_dataset=rows)
    with pytest.raises(FloatingPointError, match=r"the teacher's outputs are NaN or infinite for row \d of the batch:"):
        trainer.train()


def test_a_verdict_that_comes_a_step_later_still_comes_before_the_checkpoint(tmp_path):
    """How it goes on a GPU: the host does not wait, so the step is taken; nothing is saved, logged or evaluated."""
    quiet = {"logging_strategy": "no", "save_steps": 3, "max_steps": 40, "num_train_epochs": 9}
    for bad in BAD, (2, 3), (30, 31):
        folder = tmp_path / str(bad)
        trainer = make(folder, bad=bad, **(quiet | {"seed": bad[0]}))
        trainer.judged.watch.lags = True
        watcher = Watcher(trainer)
        with pytest.raises(FloatingPointError) as caught:
            trainer.train()
        broke = next(i for i, rows in enumerate(watcher.rows) if set(rows) & set(bad)) + 1
        assert f"step {broke}: the teacher's outputs" in str(caught.value)
        assert len(watcher.rows) == (broke if broke % 3 == 0 or broke % 4 == 0 else broke + 1)
        assert not (folder / f"checkpoint-{broke}").exists()


def test_ignore_looks_at_nothing(tmp_path):
    trainer = make(tmp_path, on_nan="ignore")
    trainer.train()
    assert any(math.isnan(x) for x in logged(trainer, "loss"))


class WithoutNan(TrainerCallback):
    """Sets what is not finite in a gradient to 0, as a script's own remedy."""

    def on_pre_optimizer_step(self, args, state, control, **keywords):
        for parameter in keywords["model"].parameters():
            parameter.grad.nan_to_num_(0.0, 0.0, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_taken_all_the_same_breaks_the_logged_loss_of_its_own_window_only(tmp_path, value):
    """Trainer empties its sum by subtracting it from itself, after which all later entries would be NaN."""
    trainer = make(tmp_path, on_nan="ignore", value=value, bad=[9], save_strategy="no", logging_steps=2)
    trainer.add_callback(WithoutNan())
    trainer.train()
    broken = [not math.isfinite(kd) for kd in logged(trainer, "kd")]
    assert True in broken
    assert False in broken[broken.index(True) :]
    assert [not math.isfinite(loss) for loss in logged(trainer, "loss")] == broken


# ---- skip -------------------------------------------------------------------------------------------------------


class LeavesOut(TrainerCallback):
    """Drops the gradient of the given steps: the reference for `skip`."""

    def __init__(self, trainer, steps):
        self.trainer, self.steps = trainer, steps

    def on_pre_optimizer_step(self, args, state, control, **keywords):
        if state.global_step + 1 in self.steps:
            self.trainer.model.zero_grad()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_skip_is_the_run_in_which_those_steps_were_not_taken(tmp_path, caplog, accumulation, optim):
    split = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    keywords = split | {"optim": optim, "weight_decay": 0.1, "save_strategy": "no", "max_grad_norm": 1.0}
    caplog.set_level(logging.WARNING)
    trainer = make(tmp_path / "a", on_nan="skip", **keywords)
    watcher = Watcher(trainer)
    trainer.train()
    left_out = sorted({i // accumulation + 1 for i, rows in enumerate(watcher.rows) if set(rows) & set(BAD)})
    assert 2 <= len(left_out) < 8
    assert logged(trainer, "skipped_steps")[-1] == len(left_out) == caplog.text.count("The step is skipped")
    reference = make(tmp_path / "b", part="none", **keywords)
    reference.add_callback(LeavesOut(reference, left_out))
    reference.train()
    for name, value in parameters(reference).items():
        assert torch.equal(parameters(trainer)[name], value), name
    assert logged(trainer, "learning_rate") == logged(reference, "learning_rate")
    assert [step for step, loss in losses(trainer).items() if math.isnan(loss)] == left_out
    for key in ("kd", "ce"):
        assert all(math.isfinite(x) for x in logged(trainer, key)), key


class Normed(Net):
    """Net with batch norm; `cumulative` statistics are the plain mean over the batches counted so far."""

    def __init__(self, cumulative=False):
        super().__init__()
        self.norm = nn.BatchNorm2d(4, momentum=None if cumulative else 0.1)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("cumulative", [False, True])
def test_a_skipped_step_leaves_batch_norms_statistics_as_they_were(tmp_path, cumulative, accumulation):
    """One image is infinite: they are those of a student that was shown the other steps only."""
    rows = MarkedRows(())
    rows.images[BAD[0]] = math.inf
    split = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    args = arguments(tmp_path, on_nan="skip", max_steps=8, learning_rate=0.0, **split)
    trainer = DistillationTrainer(Normed(cumulative), teacher(), args, train_dataset=rows)
    watcher = Watcher(trainer)
    trainer.train()
    steps = [watcher.rows[i : i + accumulation] for i in range(0, len(watcher.rows), accumulation)]
    good = [step for step in steps if not any(BAD[0] in batch for batch in step)]
    assert len(steps) == 8
    assert len(good) == 6
    reference = Normed(cumulative).train()
    for batch in (batch for step in good for batch in step):
        reference(rows.images[batch])
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(trainer.model.get_buffer(name), buffer)


def test_the_logged_means_are_those_of_the_steps_that_count(tmp_path):
    skipping = make(tmp_path / "a", on_nan="skip", logging_steps=4, max_steps=4, save_strategy="no", learning_rate=0.0)
    watcher = Watcher(skipping)
    skipping.train()
    good = [rows for rows in watcher.rows if not set(rows) & set(BAD)]
    plain = make(tmp_path / "b", part="none", logging_steps=4, max_steps=4, save_strategy="no", learning_rate=0.0)
    rows, kd = MarkedRows(), []
    for batch in good:
        items = plain.data_collator([rows[i] for i in batch])
        kd.append(plain.step(plain.model, plain.teacher, MicroBatch(items, 8))[1]["kd"].item())
    assert logged(skipping, "kd")[0] == pytest.approx(sum(kd) / len(kd), rel=1e-5)


def losses(trainer):
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


@pytest.mark.parametrize("logging_steps", [1, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_logged_loss_is_the_mean_over_the_steps_that_were_taken(tmp_path, accumulation, logging_steps):
    """At a rate of 0, so that every step's loss is that of the run in which nothing breaks."""
    split = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    keywords = split | {"max_steps": 12, "learning_rate": 0.0, "save_strategy": "no"}
    whole = make(tmp_path / "whole", part="none", **keywords)
    whole.train()
    skipping = make(tmp_path / "skip", on_nan="skip", logging_steps=logging_steps, **keywords)
    watcher = Watcher(skipping)
    skipping.add_callback(ResultsCallback({}, metric="eval_loss"))
    returned = skipping.train()
    broken = {i // accumulation + 1 for i, rows in enumerate(watcher.rows) if set(rows) & set(BAD)}
    taken = [losses(whole)[step] for step in range(1, 13) if step not in broken]
    assert len(taken) + skipping.judged.watch.skipped == 12
    assert 4 <= len(broken)
    for step, loss in losses(skipping).items():
        window = [losses(whole)[s] for s in range(step - logging_steps + 1, step + 1) if s not in broken]
        assert loss == pytest.approx(sum(window) / len(window)) if window else math.isnan(loss)
    assert returned.training_loss == returned.metrics["train_loss"] == pytest.approx(sum(taken) / len(taken))
    assert logged(skipping, "train_loss") == [returned.training_loss]
    for row in json.loads((tmp_path / "skip" / "results.json").read_text())["epochs"]:  # 4 steps each
        ends = [s for s in losses(skipping) if row["step"] - 4 < s <= row["step"]]
        assert row["step"] in ends or logging_steps == 3
        if logging_steps != 3:
            window = [losses(whole)[s] for s in range(row["step"] - 3, row["step"] + 1) if s not in broken]
            assert row["loss"] == pytest.approx(sum(window) / len(window))


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_train_loss_is_that_of_the_steps_after_a_resume(tmp_path, on_nan):
    keywords = {"part": "none", "on_nan": on_nan, "max_steps": 12, "save_steps": 8, "save_strategy": "steps"}
    make(tmp_path, **keywords).train()
    resumed = make(tmp_path, **keywords)
    returned = resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    own = [loss for step, loss in losses(resumed).items() if step > 8]
    assert len(own) == 4
    assert returned.training_loss == returned.metrics["train_loss"] == pytest.approx(sum(own) / 4)


def test_a_run_of_which_every_step_was_left_out_has_no_loss(tmp_path):
    skipping = make(tmp_path, bad=range(2, 32), on_nan="skip", save_strategy="no")
    skipping.add_callback(ResultsCallback({}, metric="eval_loss"))
    returned = skipping.train()
    assert math.isnan(returned.training_loss)
    assert all(math.isnan(loss) for loss in losses(skipping).values())
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["losses"]["last"] == {"step": 8, "loss": None}
    assert found["epochs"][-1]["skipped_steps"] == 8


def test_a_resumed_run_goes_on_counting(tmp_path):
    settings = {"on_nan": "skip", "max_steps": 16, "save_steps": 8}
    whole = make(tmp_path / "whole", **settings)
    whole.train()
    resumed = make(tmp_path / "whole", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    assert logged(resumed, "skipped_steps") == logged(whole, "skipped_steps")
    assert whole.judged.watch.skipped > logged(whole, "skipped_steps")[7] > 0


def rank_job(folder, on_nan, accumulation):
    """Train on this rank with a teacher that breaks for one row, which one rank alone sees."""
    trainer = make(
        f"{folder}/{on_nan}",
        bad=(7,),
        on_nan=on_nan,
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        save_strategy="no",
    )
    try:
        trainer.train()
    except FloatingPointError as error:
        print("stopped:", error, flush=True)
    rank = trainer.args.process_index
    torch.save({n: p.detach() for n, p in trainer.model.state_dict().items()}, f"{folder}/{on_nan}-{rank}.pt")


@pytest.mark.parametrize(("on_nan", "accumulation"), [("stop", 1), ("skip", 2)])
def test_two_ranks_stop_at_the_same_step_and_skip_the_same_ones(tmp_path, on_nan, accumulation):
    assert on_ranks(tmp_path / "log", 2, rank_job, str(tmp_path), on_nan, accumulation) == [0, 0]
    first, second = (torch.load(tmp_path / f"{on_nan}-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(tensor.isfinite().all() for tensor in first.values())
    logs = [(tmp_path / f"log-{rank}").read_text() for rank in (0, 1)]
    if on_nan == "stop":
        stopped = [[line for line in log.splitlines() if line.startswith("stopped:")] for log in logs]
        assert stopped[0] == stopped[1]
        assert "the teacher's outputs are NaN or infinite for row 7: " in stopped[0][0]
    else:
        assert "The step is skipped; 2 so far" in logs[0]


# ---- arguments --------------------------------------------------------------------------------------------------


def test_an_unknown_choice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="on_nan='abort' must be 'stop', 'skip' or 'ignore'"):
        arguments(tmp_path, on_nan="abort")
