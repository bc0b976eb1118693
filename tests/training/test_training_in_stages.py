"""Training in stages: layers, rates and weights of the loss that change between two trainings, or within one."""

import pytest
import torch
from toys import Net, Rows, arguments, teacher
from transformers import TrainerCallback

from hfkd import DistillationTrainer
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.temperatures import Energy, Gradation
from hfkd.models import InputSpec
from hfkd.teachers import FrozenTeacher
from hfkd.training import run_identity

MADE = "The optimizer of the training before is replaced by another one"
LEFT_OUT = "require a gradient, but the optimizer does not have them"


def make(folder, student=None, callbacks=(), **settings):
    keywords = {"train_dataset": Rows(), "callbacks": list(callbacks)}
    return DistillationTrainer(student or Net(), teacher(), arguments(folder, **settings), **keywords)


def moved(before, network):
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def copied(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


# ---- between two trainings -------------------------------------------------------------------------------------------


def test_layers_that_are_unfrozen_for_a_second_training_train(tmp_path, caplog):
    student = Net()
    student.conv.requires_grad_(False)
    trainer = make(tmp_path, student)
    trainer.train()
    student.conv.requires_grad_(True)
    before = copied(student)
    trainer.train()
    assert moved(before, student) == set(before)
    assert f"{MADE}, without its state (momentum): conv.weight, conv.bias require a gradient too." in caplog.text


def test_a_second_training_has_the_rate_that_was_set_for_it(tmp_path, caplog):
    """As another trainer would, with the student that the first has trained."""
    trainer = make(tmp_path / "one", optim="adamw_torch", weight_decay=0.1)
    trainer.train()
    other = make(tmp_path / "two", Net(), optim="adamw_torch", learning_rate=0.01, weight_decay=0.0)
    other.model.load_state_dict(trainer.model.state_dict())
    trainer.args.learning_rate, trainer.args.weight_decay = 0.01, 0.0
    trainer.train()
    other.train()
    for name, value in other.model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value)
    assert trainer.settings["learning_rate"] == 0.01
    assert "learning_rate is 0.01 in place of 0.1; weight_decay is 0.0 in place of 0.1" in caplog.text


def test_a_run_that_its_own_trainer_resumes_with_other_settings_says_so_as_a_new_trainer_does(tmp_path, caplog):
    """The rate is the stored one, in both."""
    saving, said, rates = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}, [], []
    trainer = make(tmp_path, max_steps=2, **saving)
    trainer.train()
    again = {"max_steps": 4, "learning_rate": 0.01}
    vars(trainer.args).update(again)
    for one in (trainer, make(tmp_path, **saving, **again)):
        caplog.clear()
        one.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        said.append([record.getMessage() for record in caplog.records if record.name.startswith("hfkd")])
        rates.append(one.state.log_history[-2]["learning_rate"])
        assert one.record.training["learning_rate"] == 0.01
    assert said[0] == said[1] != []
    assert "was trained with learning_rate=0.1, max_steps=2; it is resumed with" in said[0][0]
    assert rates == [0.1, 0.1]
    trainer.args.data_seed = 5
    with pytest.raises(ValueError, match="and this run has data_seed=5"):
        trainer.train(resume_from_checkpoint=True)


def test_a_folder_that_is_set_for_a_training_may_not_hold_another_run(tmp_path):
    args = arguments(tmp_path / "other", save_strategy="steps", save_steps=3)
    DistillationTrainer(Net(), taught_otherwise(), args, train_dataset=Rows()).train()
    for trains_before in (False, True):
        trainer = make(tmp_path / "mine")
        if trains_before:
            trainer.train()
        trainer.args.output_dir = str(tmp_path / "other")
        with pytest.raises(ValueError, match="other contains another run: its teacher is Net"):
            trainer.train()
        trainer.args.output_dir = str(tmp_path / f"new-{trains_before}")
        trainer.train()


class FailsOnce(TrainerCallback):
    """As that of a tracker to which nobody has logged in."""

    failed = False

    def on_train_begin(self, args, state, control, **keywords):
        if not self.failed:
            self.failed = True
            raise RuntimeError("log in")


def test_a_training_after_one_that_could_not_begin_has_the_rate_and_the_layers_that_were_set_for_it(tmp_path):
    student = Net()
    student.conv.requires_grad_(False)
    trainer = make(tmp_path, student, [FailsOnce()])
    with pytest.raises(RuntimeError, match="log in"):
        trainer.train()
    trainer.args.learning_rate = 0.01
    student.conv.requires_grad_(True)
    before = copied(student)
    trainer.train()
    assert [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry] == [0.01] * 3
    assert moved(before, student) == set(before)


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_a_rate_that_follows_the_metric_begins_as_set_in_each_training(tmp_path, schedule):
    settings = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5}, "max_steps": 4}
    settings |= {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_loss", "learning_rate": 3.0}
    data = {"train_dataset": Rows(), "eval_dataset": Rows(13)}
    trainer = DistillationTrainer(Net(), teacher(), arguments(tmp_path, **settings), **data)
    for _ in range(2):
        trainer.train()
        rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        assert rates[0] == 3.0
        assert rates[-1] != 3.0


STILL = "The student still has the weights of"


def test_weights_of_a_checkpoint_that_was_loaded_for_a_refused_training_are_said(tmp_path, caplog):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    make(tmp_path / "run", **saving).train()
    for anew in (False, True):
        trainer = make(tmp_path / "run", **saving, lr_decay_epochs=[0.25])
        with pytest.raises(ValueError, match="start a new run in another output_dir"):
            trainer.train(resume_from_checkpoint=True)
        if anew:
            trainer.model.load_state_dict(Net().state_dict())
        trainer.args.output_dir = str(tmp_path / f"new-{anew}")
        caplog.clear()
        trainer.train()
        assert (f"{STILL} {tmp_path}/run/checkpoint-2," in caplog.text) == (not anew)
        caplog.clear()
        trainer.train(resume_from_checkpoint=True)
        trainer.train()
        assert STILL not in caplog.text


def test_checkpoints_of_the_training_before_are_said(tmp_path, caplog):
    trainer = make(tmp_path, save_strategy="steps", save_steps=1)
    said = f"{tmp_path}/checkpoint-3 is from an earlier training, and this one starts at step 0"
    trainer.train()
    trainer.train(resume_from_checkpoint=True)
    assert said not in caplog.text
    trainer.train()
    assert caplog.text.count(said) == 1


def test_layers_that_are_frozen_for_a_second_training_stay_as_they_are_and_the_optimizer_too(tmp_path, caplog):
    trainer = make(tmp_path, optim="adamw_torch")
    trainer.train()
    optimizer, before = trainer.optimizer, copied(trainer.model)
    trainer.model.conv.requires_grad_(False)
    trainer.train()
    assert trainer.optimizer is optimizer
    assert moved(before, trainer.model) == {"head.weight", "head.bias"}
    assert MADE not in caplog.text


def test_an_optimizer_of_ones_own_is_left_as_it_is(tmp_path, caplog):
    student = Net()
    student.conv.requires_grad_(False)
    own = torch.optim.SGD(student.head.parameters(), lr=0.1)
    data = {"train_dataset": Rows(), "optimizers": (own, None)}
    trainer = DistillationTrainer(student, teacher(), arguments(tmp_path), **data)
    trainer.train()
    trainer.args.learning_rate = 0.01
    student.conv.requires_grad_(True)
    trainer.train()
    assert {id(p) for p in trainer.optimizer.param_groups[0]["params"]} == {id(p) for p in student.head.parameters()}
    assert MADE not in caplog.text
    assert caplog.text.count(f"conv.weight, conv.bias: {LEFT_OUT}") == 1


class Seen(Net):
    """Notes whether it is trained in autocast, and whether it runs in it in eval mode."""

    def __init__(self):
        super().__init__()
        self.modes = set()

    def forward(self, x):
        self.modes.add((self.training, torch.is_autocast_enabled("cpu")))
        return super().forward(x)


AS_IS = InputSpec((0.0,) * 3, (1.0,) * 3, None)


@pytest.mark.parametrize("kind", [lambda network: network, lambda network: FrozenTeacher(network, AS_IS, AS_IS)])
@pytest.mark.parametrize("precisions", [(True, False), (False, True)])
def test_a_student_of_an_earlier_trainer_has_the_precision_of_its_own(tmp_path, precisions, kind):
    student, taught = Seen(), Seen()
    given = kind(taught)
    for number, bf16 in enumerate(precisions):
        args = arguments(tmp_path / str(number), bf16=bf16, max_steps=1)
        trainer = DistillationTrainer(student, given, args, train_dataset=Rows(), eval_dataset=Rows(13))
        student.modes, taught.modes = set(), set()
        trainer.train()
        trainer.evaluate()
        assert student.modes == {(True, bf16), (False, False)}, "evaluation is in float32"
        assert (False, True) in taught.modes if bf16 else taught.modes == {(False, False)}


def test_a_teacher_that_an_earlier_trainer_has_trained_runs_in_the_precision_of_its_students(tmp_path):
    taught = Seen()
    first = arguments(tmp_path / "teacher", bf16=True, max_steps=1, kd_weight=0.0, ce_weight=1.0)
    DistillationTrainer(taught, None, first, train_dataset=Rows()).train()
    trainer = DistillationTrainer(Net(), taught, arguments(tmp_path / "student", max_steps=1), train_dataset=Rows())
    taught.modes = set()
    trainer.train()
    assert taught.modes == {(False, False)}


def test_the_teachers_accuracy_is_that_on_the_set_of_each_training(tmp_path):
    parts = [Rows(40), Rows(13)]
    trainer = DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=Rows(), eval_dataset=parts[0])
    found = []
    for part in parts:
        trainer.eval_dataset = part
        trainer.train()
        found.append(trainer.state.log_history[0]["teacher_accuracy"])
    with torch.no_grad():
        hits = [(teacher()(part.images).argmax(-1) == part.labels).float().mean().item() for part in parts]
    assert found == pytest.approx(hits)
    assert hits[0] != hits[1]


def taught_otherwise():
    net = Net(16, seed=5)
    with torch.no_grad():
        net.head.weight.mul_(3)
    return net


@pytest.mark.parametrize("where", ["keyword", "arguments"])
@pytest.mark.parametrize("kind", [Energy, Gradation])
def test_a_temperature_that_two_trainers_share_is_fitted_for_each(tmp_path, kind, where):
    shared, rows, fitted = kind(), Rows(40), []
    for number, slot in enumerate((shared, shared, kind())):
        taught = taught_otherwise() if number else teacher()
        settings, keywords = ({"temperature": slot}, {}) if where == "arguments" else ({}, {"temperature": slot})
        args = arguments(tmp_path / str(number), max_steps=1, **settings)
        trainer = DistillationTrainer(Net(), taught, args, train_dataset=rows, **keywords)
        trainer.train()
        fitted.append((trainer.distillation_loss.temperature.thresholds, trainer.record.loss["temperature"]))
    assert fitted[1] == fitted[2]
    assert fitted[0][0] != fitted[1][0]
    assert shared.thresholds is None


def scores(trainer):
    """What a training says of its teacher: the record's line, and the accuracy."""
    trainer.train()
    return trainer.record.teacher, trainer.state.log_history[0]["teacher_accuracy"]


@pytest.mark.parametrize("trained_before", [False, True])
def test_a_teacher_that_has_been_trained_since_is_recorded_and_scored_as_it_is_now(tmp_path, trained_before, caplog):
    """Between building and training, or between two trainings, such as rounds in which both learn."""
    rows, taught, settings = Rows(40), teacher(), {"max_steps": 1, "temperature": "energy"}
    data = {"train_dataset": rows, "eval_dataset": Rows(40, seed=1)}
    trainer = DistillationTrainer(Net(), taught, arguments(tmp_path / "one", **settings), **data)
    before = scores(trainer) if trained_before else None
    thresholds = trainer.distillation_loss.temperature.thresholds
    DistillationTrainer(
        taught, None, arguments(tmp_path / "teacher", max_steps=20, kd_weight=0.0, ce_weight=1.0), train_dataset=rows
    ).train()
    new = DistillationTrainer(Net(), taught, arguments(tmp_path / "two", **settings), **data)
    found = scores(trainer)
    assert found == scores(new)
    assert run_identity.read(tmp_path / "one").teacher == new.record.teacher
    now, its = (one.distillation_loss.temperature.thresholds for one in (trainer, new))
    if not trained_before:
        assert now == its
    else:
        assert found[0] != before[0]
        assert found[1] != before[1]
        assert now == thresholds != its
        assert caplog.text.count("The teacher has other weights: the thresholds of Energy(") == 1


def collating(scale, seen):
    def collate(rows):
        seen.append(scale)
        batch = torch.utils.data.default_collate([{**row} for row in rows])
        return {**batch, "pixel_values": scale * batch["pixel_values"]}

    return collate


def test_what_is_set_on_a_trainer_with_model_init_is_used_or_refused(tmp_path):
    seen = []
    keywords = {"train_dataset": Rows(), "model_init": lambda: Net(), "data_collator": collating(1, seen)}
    trainer = DistillationTrainer(None, teacher(), arguments(tmp_path, max_steps=1), **keywords)
    trainer.data_collator = collating(2, seen)
    for _ in range(2):
        seen.clear()
        trainer.train()
        assert set(seen) == {2}
    trainer.teacher = teacher()
    with pytest.raises(ValueError, match="trainer.teacher was set to a Net after the trainer had been built"):
        trainer.train()


# ---- within a training -----------------------------------------------------------------------------------------------


class Sets(TrainerCallback):
    """Calls `change` at the start of step 1."""

    def __init__(self, change):
        self.change = change

    def on_step_begin(self, args, state, control, **keywords):
        if state.global_step == 1:
            self.change(args, keywords["model"])


def test_layers_that_are_unfrozen_in_training_are_named_once(tmp_path, caplog):
    student = Net()
    student.conv.requires_grad_(False)
    unfreeze = Sets(lambda args, model: model.conv.requires_grad_(True))
    make(tmp_path, student, [unfreeze], max_steps=-1, num_train_epochs=3).train()
    assert caplog.text.count(f"conv.weight, conv.bias: {LEFT_OUT}") == 1


class Thaws(TrainerCallback):
    """Freezes the convolution when training starts, and unfreezes it for the last epoch."""

    def on_train_begin(self, args, state, control, **keywords):
        keywords["model"].conv.requires_grad_(False)

    def on_epoch_begin(self, args, state, control, **keywords):
        if state.epoch >= 1:
            keywords["model"].conv.requires_grad_(True)


def test_layers_that_are_frozen_once_training_starts_train_when_they_are_unfrozen(tmp_path, caplog):
    """As the warning advises."""
    trainer = make(tmp_path, callbacks=[Thaws()], max_steps=-1, num_train_epochs=2)
    before = copied(trainer.model)
    trainer.train()
    assert moved(before, trainer.model) == set(before)
    assert LEFT_OUT not in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("kd_weight", 0.5, ", or set trainer.distillation_loss.kd_weight, which may change in training"),
        ("temperature", "2.0", ""),
        ("on_nan", "skip", ""),
        ("he_da", "released", ""),
        ("on_policy", 0.5, ""),
        ("per_device_train_batch_size", 16, ""),
    ],
)
@pytest.mark.parametrize("when", ["in training", "between trainings"])
def test_arguments_that_would_have_no_effect_any_more_are_refused(tmp_path, name, value, remedy, when):
    trainer = make(tmp_path, callbacks=[Sets(lambda args, model: setattr(args, name, value))])
    if when == "between trainings":
        trainer = make(tmp_path)
        trainer.train()
        setattr(trainer.args, name, value)
    with pytest.raises(ValueError, match=f"args.{name} was set to {value!r} .*: build a new trainer{remedy}$"):
        trainer.train()


def test_the_weights_of_the_loss_may_change_in_training(tmp_path):
    def change(args, model):
        trainer.distillation_loss.kd_weight, trainer.distillation_loss.ce_weight = 0.25, 0.5

    trainer = make(tmp_path, callbacks=[Sets(change)])
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "kd" in entry]
    found = [entry["loss"] for entry in logs]
    weights = [(0.1, 0.9), (0.5, 0.25), (0.5, 0.25)]
    assert found == pytest.approx(
        [a * e["ce"] + b * e["kd"] for (a, b), e in zip(weights, logs, strict=True)], rel=1e-4
    )


def test_a_part_of_the_loss_that_a_trainer_was_built_without_does_not_begin_in_training(tmp_path):
    trainer = make(
        tmp_path,
        callbacks=[Sets(lambda args, model: setattr(trainer.distillation_loss, "kd_weight", 0.5))],
        kd_weight=0.0,
        ce_weight=1.0,
        temperature="learned(warmup_epochs=0)",
    )
    with pytest.raises(ValueError, match="kd_weight was set to 0.5 in a trainer that was built with kd_weight=0"):
        trainer.train()


@pytest.mark.parametrize("when", ["in training", "between trainings"])
def test_another_loss_is_not_passed_over(tmp_path, when):
    def change(args, model):
        trainer.distillation_loss = DistillationLoss("reverse_kl", 1.0)

    trainer = make(tmp_path, callbacks=[Sets(change)] if when == "in training" else [])
    if when == "between trainings":
        trainer.train()
        change(None, None)
    with pytest.raises(ValueError, match=r"would still train with DistillationLoss\(objective=KD"):
        trainer.train()


def test_an_argument_that_has_no_effect_before_the_next_training_is_said_once(tmp_path, caplog):
    trainer = make(tmp_path, callbacks=[Sets(lambda args, model: setattr(args, "learning_rate", 0.01))])
    said = "args.learning_rate was set to 0.01 in training, which was planned with 0.1: without effect before the next"
    for rate in (0.1, 0.01):
        trainer.train()
        assert [e["learning_rate"] for e in trainer.state.log_history if "learning_rate" in e] == [rate] * 3
        assert caplog.text.count(said) == 1


def test_steps_are_not_made_larger_in_the_middle_of_a_training(tmp_path):
    trainer = make(tmp_path, callbacks=[Sets(lambda args, model: setattr(args, "gradient_accumulation_steps", 2))])
    with pytest.raises(ValueError, match="gradient_accumulation_steps was set to 2 in training, whose steps are plann"):
        trainer.train()


class Pauses(TrainerCallback):
    """Distils in the first and the last of four steps."""

    def on_train_begin(self, args, state, control, **keywords):
        self.loss = keywords["model"].distillation_loss  # a child of the student, as it learns

    def on_step_begin(self, args, state, control, **keywords):
        self.loss.kd_weight = 0.0 if state.global_step in (1, 2) else 0.9


def test_a_loss_that_learns_and_reads_layers_may_pause_and_is_saved_meanwhile(tmp_path):
    def made(steps):
        settings = arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=steps)
        slots = {
            "objective": "kd + fitnet(layer='conv', teacher_layer='conv')",
            "temperature": "learned(warmup_epochs=0)",
        }
        data = {"train_dataset": Rows(), "callbacks": [Pauses()]}
        return DistillationTrainer(Net(), teacher(), settings, **slots, **data)

    whole, again = made(2), made(2)
    whole.train()
    assert [{"kd", "fitnet"} & entry.keys() for entry in whole.state.log_history if "loss" in entry] == [
        {"kd", "fitnet"}, set(), set(), {"kd", "fitnet"},
    ]  # fmt: skip
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for part in ("model", "distillation_loss"):
        theirs, ours = (getattr(trainer, part).state_dict() for trainer in (whole, again))
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), name


def test_what_a_loss_has_learned_stays_in_a_stage_without_it(tmp_path, caplog):
    settings = arguments(tmp_path, optim_args="momentum=0.9", weight_decay=0.1)
    trainer = DistillationTrainer(
        Net(), teacher(), settings, train_dataset=Rows(), temperature="learned(warmup_epochs=0)"
    )
    trainer.train()
    learned, before = trainer.distillation_loss.temperature.theta.item(), copied(trainer.model)
    trainer.distillation_loss.kd_weight = 0.0
    trainer.train()
    assert trainer.distillation_loss.temperature.theta.item() == learned != 1.0
    assert moved(before, trainer.model) == set(before)
    assert "got no gradient" not in caplog.text
