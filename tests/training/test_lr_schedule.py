"""Epochs: warm-ups and decays follow them, wherever a run starts, and need to know how long one is."""

import logging

import pytest
import torch
from torch.optim.lr_scheduler import MultiStepLR
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.losses.logits import KD


class Endless(torch.utils.data.IterableDataset):
    """The rows over and over."""

    def __iter__(self):
        rows = Rows()
        while True:
            yield from (rows[i] for i in range(len(rows)))


class Counted(Endless):
    """With a number of rows that is to count as one epoch."""

    def __len__(self):
        return 32


def make(folder, data=Rows, **keywords):
    slots = {k: keywords.pop(k) for k in ("objective", "temperature", "weighting") if k in keywords}
    args = arguments(folder, **{"learning_rate": 1e-9, "train_sampling_strategy": "sequential"} | keywords)
    return DistillationTrainer(Net(), teacher(), args, train_dataset=data(), **slots)


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_settings_of_an_optimizer_beside_a_given_one_are_refused(tmp_path):
    """They would have no effect; the results page would say that they had."""
    student = Net()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)

    def build(scheduler, **settings):
        given = {"train_dataset": Rows(), "optimizers": (optimizer, scheduler)}
        return DistillationTrainer(student, teacher(), arguments(tmp_path, **settings), **given)

    with pytest.raises(ValueError, match=r"lr_decay_epochs=\[1.0\] has no effect on optimizers=\(..., ConstantLR\)"):
        build(torch.optim.lr_scheduler.ConstantLR(optimizer), lr_decay_epochs=[1.0])
    with pytest.raises(ValueError, match=r"decay_bias_and_norm=True has no effect on optimizers=\(SGD, ...\)"):
        build(None, decay_bias_and_norm=True)
    build(None, lr_decay_epochs=[1.0])


@pytest.mark.parametrize("steps", [{"max_steps": 12}, {"max_steps": 6, "gradient_accumulation_steps": 2}])
def test_a_stream_with_a_length_warms_up_as_a_dataset_does(tmp_path, steps):
    """4 batches an epoch: the ramp is 1/4, 2/4, 3/4 in the three epochs."""
    runs = [make(tmp_path / d.__name__, d, objective="dkd(warmup_epochs=4)", **steps) for d in (Rows, Counted)]
    whole = make(tmp_path / "whole", objective="dkd(warmup_epochs=0)", **steps)
    for run in (*runs, whole):
        run.train()
    each = 4 // steps.get("gradient_accumulation_steps", 1)
    ramp = [(step // each + 1) / 4 for step in range(steps["max_steps"])]
    expected = [r * kd for r, kd in zip(ramp, logged(whole, "kd"), strict=True)]
    for run in runs:
        assert logged(run, "kd") == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("keywords", "what"),
    [
        ({"objective": "dkd"}, r"DKD\(.*\) counts epochs.*set warmup_epochs=0"),
        ({"objective": "standardized(objective='average(objective=\"dkd\")')"}, r"Standardized\(.*counts epochs"),
        ({"temperature": "learned"}, r"Learned\(.*counts epochs"),
        ({"lr_decay_epochs": [2.0]}, r"lr_decay_epochs=\[2.0\] counts epochs.*for an lr_scheduler_type"),
    ],
)
def test_who_counts_epochs_is_refused_on_a_stream_of_unknown_length(tmp_path, keywords, what):
    with pytest.raises(ValueError, match=what):
        make(tmp_path / "run", Endless, **keywords)
    assert not (tmp_path / "run").exists()


def test_a_loader_of_unknown_length_is_refused_before_the_first_step(tmp_path):
    class OwnLoader(DistillationTrainer):
        def get_train_dataloader(self):
            return self.accelerator.prepare(torch.utils.data.DataLoader(Endless(), 8, collate_fn=self.data_collator))

    trainer = OwnLoader(Net(), teacher(), arguments(tmp_path), train_dataset=Rows(), objective="dkd")
    with pytest.raises(ValueError, match="counts epochs, and the training stream has no length"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    "slots", [{"objective": "dkd(warmup_epochs=0)"}, {"temperature": "learned(warmup_epochs=0)"}, {"objective": "kd"}]
)
def test_what_counts_no_epochs_trains_on_a_stream(tmp_path, slots):
    trainer = make(tmp_path, Endless, **slots)
    trainer.train()
    assert len(logged(trainer, "kd")) == 3


@pytest.mark.parametrize("temperature", ["energy(ratio=0.25)", "gradation"])
def test_an_endless_stream_is_not_scanned_for_thresholds(tmp_path, temperature):
    with pytest.raises(
        ValueError, match="a stream of unknown length, which a teacher scan would have to read completely"
    ):
        make(tmp_path / "run", Endless, temperature=temperature)
    assert not (tmp_path / "run").exists()
    run, whole = (make(tmp_path / d.__name__, d, temperature=temperature) for d in (Counted, Rows))
    for trainer in (run, whole):
        trainer.train()
    thresholds = [trainer.distillation_loss.temperature.thresholds for trainer in (run, whole)]
    assert thresholds[0] == thresholds[1]
    with torch.no_grad():
        run.teacher.networks[0].head.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="for 32 of 32 training rows"):
        run.scan_training_set()
    make(tmp_path / "given", Endless, temperature="energy(thresholds=(-9, -5))").train()


@pytest.mark.parametrize("data", [Rows, Endless])
def test_a_slot_of_ones_own_sees_epochs_or_none(tmp_path, data):
    seen = []

    def objective(items, temperature):
        seen.append(items.progress)
        return KD()(items, temperature)

    make(tmp_path, data, objective=objective, max_steps=6).train()
    assert seen[-6:] == ([0, 0.25, 0.5, 0.75, 1, 1.25] if data is Rows else [None] * 6)


def test_a_resumed_run_goes_on_in_its_epoch(tmp_path):
    """Killed in the second of three epochs, with two micro-batches a step."""
    keywords = {"objective": "dkd(warmup_epochs=3)", "gradient_accumulation_steps": 2, "max_steps": 6}
    keywords |= {"save_strategy": "steps", "save_steps": 3, "learning_rate": 0.01}
    whole = make(tmp_path, **keywords)
    whole.train()
    resumed = make(tmp_path, **keywords)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert logged(resumed, "kd")[-3:] == logged(whole, "kd")[-3:]


def test_a_warm_up_that_outlasts_the_run_is_said(tmp_path, caplog):
    with caplog.at_level("WARNING", "hfkd.training.lr_schedule"):
        make(tmp_path / "1", objective="dkd(warmup_epochs=2)", max_steps=8).train()
        assert caplog.messages == []
        make(tmp_path / "2", objective="dkd(warmup_epochs=4)", max_steps=8).train()
    assert len(caplog.messages) == 1
    assert "warms up over 4 epochs, and this run has 2: training ends before the warm-up does" in caplog.text


# ---- the learning rate -----------------------------------------------------------------------------------------------


def rates(folder, **keywords):
    """The learning rate of each step of a run with three steps an epoch, and its schedule."""
    args = arguments(folder, learning_rate=1.0, max_steps=-1, logging_steps=1, **keywords)
    trainer = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(24))
    trainer.train()
    return [row["learning_rate"] for row in trainer.state.log_history if "loss" in row], trainer.lr_scheduler


def test_decays_alone_are_torchs(tmp_path):
    found, schedule = rates(tmp_path, num_train_epochs=3, lr_decay_epochs=[1, 2], lr_decay_factor=0.5)
    assert type(schedule) is MultiStepLR
    assert found == [1.0] * 3 + [0.5] * 3 + [0.25] * 3


def test_each_training_begins_at_the_full_rate(tmp_path):
    """Also where a schedule has been made before, and where train() is called again."""
    args = arguments(
        tmp_path, learning_rate=1.0, max_steps=2, logging_steps=1, lr_decay_epochs=[1], evaluate_teacher=False
    )
    trainer = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(8))
    trainer.create_optimizer_and_scheduler(2)
    for _ in range(2):
        trainer.train()
        assert logged(trainer, "learning_rate") == pytest.approx([1.0, 0.1])


@pytest.mark.parametrize("warmup", [4, 0.4])  # steps, and a share of the ten
def test_a_warmup_comes_before_and_between_decays(tmp_path, warmup):
    keywords = {"lr_decay_epochs": [1, 2], "lr_decay_factor": 0.5, "warmup_steps": warmup}
    found, _ = rates(tmp_path, num_train_epochs=10 / 3, **keywords)
    assert found == pytest.approx([0, 0.25, 0.5, 0.75 * 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25])


@pytest.mark.parametrize(
    ("epochs", "said"),
    [
        ([2, 5], "lr_decay_epochs=[2, 5]: training ends at step 6, before epoch 2, 5 is over"),
        ([1, 5], "lr_decay_epochs=[1, 5]: training ends at step 6, before epoch 5 is over"),
        ([1], None),
    ],
)
def test_a_decay_that_never_comes_is_said(tmp_path, caplog, epochs, said):
    caplog.set_level(logging.WARNING, "hfkd")
    rates(tmp_path, num_train_epochs=2, lr_decay_epochs=epochs)
    assert (said in caplog.text) if said else "lr_decay_epochs" not in caplog.text
