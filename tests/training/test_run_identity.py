"""A folder holds one run: the same may go on, another is refused."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from text_toys import language_model
from torch import nn
from toys import Net, Rows, arguments, teacher
from transformers import TrainerCallback

from hfkd.data import ImageTransform
from hfkd.data.digits import load_digits
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.temperatures import Energy, Gradation
from hfkd.losses.weightings import Matched
from hfkd.models import image_classifier
from hfkd.teachers import FrozenTeacher, TeacherEnsemble
from hfkd.trainer import DistillationTrainer
from hfkd.training import run_settings
from hfkd.training.run_identity import FILE, RunRecord, network, read
from hfkd.utils.own_version import own_version


def record(student=None, taught=None, seed=0, **loss):
    return RunRecord.of(student or Net(), FrozenTeacher(taught or teacher()), DistillationLoss(**loss), seed)


def left_by(folder, **keywords):
    loss = DistillationLoss(**{k: v for k, v in keywords.items() if k not in ("student", "taught", "seed")})
    leave(record(**keywords), folder, loss)
    return folder


def leave(one, folder, loss):
    """The record of a run in `folder`, and weights: of a run that has left nothing but its record nothing is kept."""
    one.write(folder, loss)
    (folder / "model.safetensors").touch()


def test_it_comes_back(tmp_path):
    mine = record(temperature="energy(ratio=0.2)", weighting="entropy", seed=4)
    mine.write(tmp_path, DistillationLoss())
    assert read(tmp_path) == mine
    assert mine.student == "Net (137 parameters)"
    assert mine.loss["ce_weight"] == 0.1
    assert "ratio=0.2" in mine.loss["temperature"]


def test_entries_that_a_later_version_adds_do_not_hide_another_run(tmp_path):
    left_by(tmp_path, temperature="energy")
    (tmp_path / FILE).write_text(json.dumps(json.loads((tmp_path / FILE).read_text()) | {"added_later": [1]}))
    record(temperature="energy").refuse_other(tmp_path)
    with pytest.raises(ValueError, match="contains another run: its temperature is Energy"):
        record(temperature="3.0").refuse_other(tmp_path)


def test_a_record_in_which_entries_mean_something_else_is_refused(tmp_path):
    left_by(tmp_path, temperature="energy")
    stored = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(stored | {"version": 2}))
    words = f"{FILE} has version 2 of its format, and this version of hfkd reads version 1.*: resume the run with"
    for call in (record(temperature="energy").refuse_other, record(temperature="energy").refuse_checkpoint):
        with pytest.raises(ValueError, match=words):
            call(str(tmp_path))


def test_a_teacher_of_another_version_of_torch_may_be_the_same(tmp_path):
    left_by(tmp_path, taught=Net(16, seed=4))
    with pytest.raises(ValueError, match=r"that of this run is Net \(\S+ parameters, weights \w+\) \(the hash is"):
        record().refuse_other(tmp_path)
    stored = json.loads((tmp_path / FILE).read_text()) | {"training": {"versions": "torch 2.11.0, transformers 5.17.0"}}
    (tmp_path / FILE).write_text(json.dumps(stored))
    words = (
        r"\), whose layers torch 2.11.0, transformers 5.17.0 may have described otherwise \(the hash is of the weights"
    )
    with pytest.raises(ValueError, match=words):
        record().refuse_other(tmp_path)


def test_the_same_run_is_accepted(tmp_path):
    record(temperature="energy").refuse_other(tmp_path / "not there")
    record(temperature="energy").refuse_other(tmp_path)
    left_by(tmp_path, temperature="energy")
    record(temperature="energy").refuse_other(tmp_path)


@pytest.mark.parametrize(
    ("other", "name", "here", "there"),
    [
        ({"objective": "dkd(beta=2.0)"}, "objective", r"KD\(.*", r"DKD\(.*beta=2.0.*"),
        ({"temperature": "3.0"}, "temperature", r"Constant\(temperature=4\.0\)", r"Constant\(temperature=3\.0\)"),
        ({"weighting": "entropy"}, "weighting", r"Uniform\(\)", r"Entropy\(.*"),
        ({"kd_weight": 0.5}, "kd_weight", "0.9", "0.5"),
        ({"seed": 1}, "seed", "0", "1"),
        ({"taught": Net(32)}, "teacher", r"Net \(533 parameters", r"Net \(1,061 parameters"),
        ({"student": Net(6)}, "student", r"Net \(137 parameters\)", r"Net \(203 parameters\)"),
    ],
)
def test_another_run_is_refused_with_both_values(tmp_path, other, name, here, there):
    left_by(tmp_path, **other)
    with pytest.raises(
        ValueError, match=rf"another run: its {name} is {there}.*, that of this run is {here}.*; choose"
    ):
        record().refuse_other(tmp_path)


def images(rows=16, **transform):
    return load_digits()[0].select(range(rows)).with_transform(ImageTransform(augment=True, **transform))


@pytest.mark.parametrize("other", [{"rows": 12}, {"views": 2}, {"padding": 2}, {"seed": 1}])
def test_other_training_images_are_another_run(tmp_path, other):
    loss = DistillationLoss(ce_weight=1.0, kd_weight=0.0)
    of = partial(RunRecord.of, Net(), None, loss, 0)
    leave(of(dataset=images()), tmp_path, loss)
    of(dataset=images()).refuse_other(tmp_path)
    of().refuse_other(tmp_path)  # a trainer that only evaluates
    with pytest.raises(ValueError, match=r"its data is 16 rows, ImageTransform\(.*, that of this run is 1\d rows"):
        of(dataset=images(**other)).refuse_other(tmp_path)
    stored = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({k: v for k, v in stored.items() if k not in ("data", "rows")}))
    of(dataset=images(**other)).refuse_other(tmp_path)  # of a version that did not record it


def test_the_teachers_order_is_the_runs(tmp_path):
    loss, one, other = DistillationLoss("average"), FrozenTeacher(Net(seed=1)), FrozenTeacher(Net(seed=2))
    leave(RunRecord.of(Net(), TeacherEnsemble([one, other]), loss, 0), tmp_path, loss)
    RunRecord.of(Net(), TeacherEnsemble([one, other]), loss, 0).refuse_other(tmp_path)
    with pytest.raises(ValueError, match="its teacher is Net"):
        RunRecord.of(Net(), TeacherEnsemble([other, one]), loss, 0).refuse_other(tmp_path)


def test_a_run_without_a_teacher_is_another_run(tmp_path):
    loss = DistillationLoss(ce_weight=1.0, kd_weight=0.0)
    alone = RunRecord.of(Net(), None, loss, 0)
    leave(alone, tmp_path, loss)
    alone.refuse_other(tmp_path)
    with pytest.raises(ValueError, match=r"its teacher is None, that of this run is Net \(533 parameters"):
        RunRecord.of(Net(), FrozenTeacher(teacher()), loss, 0).refuse_other(tmp_path)


def checkpoint(folder, step, complete=True):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    if complete:
        (path / "a").write_text("a")
        (path / "files.json").write_text('{"a": 1}')
    return path


def test_the_newest_complete_checkpoint_stands_for_a_folder_without_a_record(tmp_path):
    left_by(checkpoint(tmp_path, 9), seed=1)
    left_by(checkpoint(tmp_path, 10), seed=2)
    left_by(checkpoint(tmp_path, 11, complete=False), seed=3)
    with pytest.raises(ValueError, match="its seed is 2, that of this run is 0"):
        record().refuse_other(tmp_path)
    record(seed=2).refuse_other(tmp_path)


@pytest.mark.parametrize(
    ("temperature", "count"), [(Energy(ratio=0.2), 2), (Gradation(), 9), (Energy(thresholds=(-2.0, -1.0)), 2)]
)
def test_thresholds_come_back_to_the_digit(tmp_path, temperature, count):
    loss = DistillationLoss(temperature=temperature)
    mine = RunRecord.of(Net(), FrozenTeacher(teacher()), loss, 0)
    if loss.unfitted:
        loss.temperature.fit(-10 * torch.rand(100, generator=torch.Generator().manual_seed(0)))
    fitted = loss.temperature.thresholds_or_none
    leave(mine, tmp_path, loss)
    back = read(tmp_path).thresholds
    assert tuple(back) == fitted
    assert len(back) == count
    restored = type(temperature)()
    restored.restore(tuple(back))
    assert restored.thresholds == fitted
    mine.refuse_other(tmp_path)  # fitting does not make it another run


def test_no_thresholds_before_the_fit_and_none_for_a_constant(tmp_path):
    for temperature in ("energy", "4.0"):
        assert read(left_by(tmp_path, temperature=temperature)).thresholds is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'{"student": 1}',
        b'{"unknown": 1}',
        b"\xff\xfe\x00",
        b'{"student": "Net", "teacher": null, "loss": "kd", "seed": 0}',
    ],
)
def test_a_record_that_cannot_be_read_is_none(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    assert read(tmp_path) is None
    record().refuse_other(tmp_path)
    left_by(tmp_path)
    assert read(tmp_path) == record()


def test_no_folder_no_record(tmp_path):
    assert read(None) is None
    assert read(tmp_path / "nowhere") is None


def test_a_temperature_object_is_fitted_by_each_trainer_that_is_given_it(tmp_path):
    shared, found = Energy(ratio=0.25), []
    for number, slot in enumerate((shared, shared, Energy(ratio=0.25))):
        taught, args = Net(16, seed=1) if number else teacher(), arguments(tmp_path / str(number), max_steps=1)
        trainer = DistillationTrainer(Net(), taught, args, train_dataset=Rows(), temperature=slot)
        trainer.train()
        found.append((trainer.distillation_loss.temperature.thresholds, read(tmp_path / str(number)).loss))
    assert found[1] == found[2] != found[0]
    assert shared.thresholds is None


def test_a_lambda_is_the_same_wherever_it_lies_in_memory(tmp_path):
    def build():
        loss = DistillationLoss(weighting=eval("lambda items: 1 - items.teacher.logits.softmax(-1).amax(-1)"))
        return RunRecord.of(Net(), FrozenTeacher(teacher()), loss, 0), loss

    (earlier, loss), (mine, other) = build(), build()
    assert loss.describe()["weighting"] != other.describe()["weighting"]  # each with its address
    leave(earlier, tmp_path, loss)
    mine.refuse_other(tmp_path)
    assert mine.loss["weighting"] == "<function <lambda>>"


def test_the_file_is_plain_json(tmp_path):
    stored = json.loads((left_by(tmp_path, weighting="entropy") / FILE).read_text())
    of_the_scan = {"thresholds", "threshold_level", "probe"}
    known = {"student", "teacher", "loss", "seed", "data", "rows", "teacher_config", "training", "order"}
    assert stored.keys() == known | of_the_scan | {"student_config", "student_layers"}


def test_a_network_is_named_by_its_architecture():
    assert network(image_classifier("cifar_resnet20", 7)).startswith("cifar_resnet20 (27")
    assert network(Net()) == "Net (137 parameters)"


def test_weights_in_four_bits_count_whole():
    """As bitsandbytes leaves them: two to a byte, and their shape in `quant_state`."""
    model = Net()
    weight = model.head.weight
    model.head.weight = nn.Parameter(torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
    model.head.weight.quant_state = SimpleNamespace(shape=weight.shape)
    assert network(model) == "Net (137 parameters)"


def test_another_checkpoint_of_the_same_teacher_is_another_run(tmp_path):
    loss = DistillationLoss()
    leave(record(), tmp_path, loss)
    other = teacher()
    with torch.no_grad():
        other.head.bias += 1
    with pytest.raises(ValueError, match=r"its teacher is Net \(.*weights"):
        record(taught=other).refuse_other(tmp_path)
    record().refuse_other(tmp_path)


def trained(folder, **settings):
    kept = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.05}
    return DistillationTrainer(Net(), teacher(), arguments(folder, **(kept | settings)), train_dataset=Rows(16))


@pytest.mark.parametrize(
    ("setting", "value"), [("learning_rate", 0.5), ("per_device_train_batch_size", 4), ("max_steps", 3)]
)
def test_a_folder_with_a_run_that_was_trained_otherwise_is_refused_unless_it_is_resumed(tmp_path, setting, value):
    trained(tmp_path).train()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    name = {"per_device_train_batch_size": "batch_size"}.get(setting, setting)
    other = trained(tmp_path, **{setting: value})
    for _ in range(2):  # as who runs a notebook's cell again
        with pytest.raises(ValueError, match=rf"a run with {name}=.*, and this run.* has {name}={value}: choose"):
            other.train()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    trained(tmp_path).train()  # the same again


class Interrupt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **keywords):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("settings", [{"learning_rate": 0.5}, {"temperature": "3.0"}, {"seed": 1}])
def test_a_run_that_was_stopped_before_it_left_anything_does_not_take_up_the_folder(tmp_path, settings):
    """As in a notebook: a setting is wrong, the run is interrupted, the setting changed, and the cell run again."""
    plan = {"max_steps": 4, "save_steps": 2}
    for step in (1, 3):  # before the first checkpoint, and after it
        made = trained(tmp_path / f"step{step}", **plan)
        made.add_callback(Interrupt(step))
        with pytest.raises(KeyboardInterrupt):
            made.train()
    trained(tmp_path / "step1", **plan, **settings).train()
    with pytest.raises(ValueError, match="step3 contains (another run: its|a run with)"):
        trained(tmp_path / "step3", **plan, **settings).train()


def test_a_resumed_run_may_be_trained_otherwise_and_says_so(tmp_path, caplog):
    trained(tmp_path).train()
    trainer = trained(tmp_path, max_steps=4)
    with caplog.at_level("WARNING", "hfkd"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    assert "was trained with max_steps=2" in caplog.text


@pytest.mark.parametrize(
    ("setting", "value"),
    [("data_seed", 7), ("dataloader_drop_last", True), ("train_sampling_strategy", "sequential")],
)
def test_a_run_is_not_resumed_with_its_rows_in_another_order(tmp_path, setting, value):
    trained(tmp_path).train()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = trained(tmp_path, **{setting: value, "max_steps": 4})
    with pytest.raises(
        ValueError, match=rf"is from a run with {setting}=.*, and this run has {setting}={value}: the rest"
    ):
        other.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=rf"contains a run with .*{setting}=.*, which does not resume it"):
        other.train()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_seed_is_the_datas_where_it_has_none_of_its_own(tmp_path):
    trained(tmp_path).train()
    trainer = trained(tmp_path, data_seed=arguments(tmp_path).seed, max_steps=3)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


def test_another_batch_size_is_said_with_what_it_does_to_the_epoch(tmp_path, caplog):
    trained(tmp_path, save_total_limit=None).train()
    with caplog.at_level("WARNING", "hfkd"):
        trained(tmp_path, per_device_train_batch_size=4, max_steps=4).train(resume_from_checkpoint=True)
    assert "was trained with batch_size=8" in caplog.text
    assert "are counted in batches of the new size: some rows come twice, or not at all" in caplog.text


@pytest.mark.parametrize(("size", "counted"), [(4, "0.5"), (16, "2")])
def test_epochs_are_not_counted_in_batches_of_another_size(tmp_path, size, counted):
    """With 16 rows a step the run would be at its end, after one epoch of two."""
    lengths = {"max_steps": -1, "num_train_epochs": 2, "save_total_limit": None}
    resumed(tmp_path, **lengths).train()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = resumed(tmp_path, **lengths, per_device_train_batch_size=size)
    said = (
        f"is at epoch 1 after 2 steps, which with the batches of this run would count as {counted} epochs of num_train"
    )
    with pytest.raises(ValueError, match=said):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    halves = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    same = resumed(tmp_path, **lengths, **halves)
    same.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert (same.state.global_step, same.state.epoch) == (4, 2)


def test_a_run_that_begins_epochs_again_can_be_resumed_more_than_once(tmp_path):
    """With two steps in an epoch, step 5 is the end of its second epoch if the second begins again after step 3."""
    settings = {"max_steps": -1, "num_train_epochs": 4, "save_total_limit": None, "ignore_data_skip": True}
    resumed(tmp_path, **settings).train()
    for later in ("[4-8]", "[6-8]"):
        for checkpoint in tmp_path.glob(f"checkpoint-{later}"):
            shutil.rmtree(checkpoint)
        trainer = resumed(tmp_path, **settings)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 8


def test_other_labels_of_the_same_images_are_another_run(tmp_path):
    def rows(label):
        g = torch.Generator().manual_seed(0)
        images = torch.randn(16, 3, 8, 8, generator=g).numpy()
        return Dataset.from_dict({"pixel_values": list(images), "labels": [label(i) for i in range(16)]}).with_format(
            "torch"
        )

    def make(label):
        args = arguments(tmp_path / "run", save_strategy="steps", save_steps=1, max_steps=2)
        return DistillationTrainer(Net(), teacher(), args, train_dataset=rows(label))

    make(lambda i: i % 5).train()
    make(lambda i: i % 5).train(resume_from_checkpoint=True)
    said = "it was trained on as many rows, but with other contents or labels"
    with pytest.raises(ValueError, match=f"contains another run: {said}; choose another output_dir"):
        make(lambda i: (i + 1) % 5)


def resumed(folder, model=None, rows=None, **keywords):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.05}
    given = {name: keywords.pop(name) for name in ("eval_dataset", "data_collator") if name in keywords}
    args = arguments(folder, **(settings | keywords), ce_weight=1.0, kd_weight=0.0)
    return DistillationTrainer(model or Net(), None, args, train_dataset=rows or Rows(16), **given)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_grad_norm", 0.5),
        ("bf16", True),
        ("adam_epsilon", 1e-3),
        ("lr_scheduler_kwargs", {"power": 2}),
        ("eval_dataset", Rows(7, seed=5)),
    ],
)
def test_whatever_decides_the_result_is_said_when_a_resumed_run_has_another(tmp_path, caplog, setting, value):
    resumed(tmp_path, eval_dataset=Rows(7)).train()
    name = {"bf16": "mixed_precision", "eval_dataset": "evaluation_rows"}.get(setting, setting)
    with caplog.at_level("WARNING", "hfkd"):
        resumed(tmp_path, **({"eval_dataset": Rows(7), "max_steps": 3} | {setting: value})).train(
            resume_from_checkpoint=True
        )
    said = next(record.getMessage() for record in caplog.records if "it is resumed with" in record.getMessage())
    assert said.count(f"{name}=") == 2
    assert ("compare values of both" in said) is (setting == "eval_dataset")


def classifier(activation=None, rate=0.0):
    torch.manual_seed(0)
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(rate), nn.Linear(4, 5))
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), activation or nn.ReLU(), *pooled)


def test_a_student_with_other_layers_of_the_same_size_is_another_run(tmp_path, caplog):
    resumed(tmp_path, classifier()).train()
    with pytest.raises(ValueError, match=r"its student has ReLU\(\), that of this run Tanh\(\); choose"):
        resumed(tmp_path, classifier(nn.Tanh()))
    with caplog.at_level("WARNING", "hfkd"):
        resumed(tmp_path, classifier(rate=0.5), max_steps=3).train(resume_from_checkpoint=True)
    assert "dropout=['Dropout(p=0.0, inplace=False)']; it is resumed with" in caplog.text


def test_a_run_that_another_hfkd_resumes_says_so(tmp_path, caplog, monkeypatch):
    resumed(tmp_path, classifier()).train()
    monkeypatch.setattr(run_settings, "own_version", lambda: "9.9+later")
    with caplog.at_level("WARNING", "hfkd"):
        resumed(tmp_path, classifier(), max_steps=3).train(resume_from_checkpoint=True)
    assert f"hfkd={own_version()}; it is resumed with" in caplog.text
    assert "hfkd=9.9+later. The optimizer continues" in caplog.text


def test_a_language_model_with_another_setting_is_another_run(tmp_path):
    student = language_model()
    loss = DistillationLoss(ce_weight=1.0, kd_weight=0.0)
    leave(RunRecord.of(student, None, loss, 0), tmp_path, loss)
    student.config.layer_norm_epsilon = 0.1
    with pytest.raises(ValueError, match=r"in its student's config layer_norm_epsilon is 1e-05, here it is 0.1"):
        RunRecord.of(student, None, loss, 0).refuse_other(tmp_path)


class Scaled:
    """A collator of somebody's own."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, rows):
        images = torch.stack([row["pixel_values"] for row in rows]) * self.scale
        return {"pixel_values": images, "labels": torch.tensor([row["labels"] for row in rows])}


def test_another_collator_is_said_with_its_settings(tmp_path, caplog):
    resumed(tmp_path, data_collator=Scaled(1.0)).train()
    with caplog.at_level("WARNING", "hfkd"):
        resumed(tmp_path, data_collator=Scaled(0.5), max_steps=3).train(resume_from_checkpoint=True)
    assert "Scaled(scale=1.0)" in caplog.text
    assert "Scaled(scale=0.5)" in caplog.text


def test_another_kind_of_optimizer_is_refused_and_one_with_other_rates_is_not(tmp_path):
    resumed(tmp_path, optim="adamw_torch").train()
    with pytest.raises(ValueError, match="state of another kind of optimizer, without dampening, momentum"):
        resumed(tmp_path, optim="sgd", max_steps=3).train(resume_from_checkpoint=True)
    resumed(tmp_path, optim="adamw_torch", weight_decay=0.1, max_steps=3).train(resume_from_checkpoint=True)


LINEAR = {"lr_scheduler_type": "linear"}
DECAYED = {"lr_decay_epochs": [1.0], "lr_decay_factor": 0.5}


@pytest.mark.parametrize(
    ("before", "now", "rate"),
    [
        (LINEAR, {"learning_rate": 1.0}, 0.0125),  # as before: the fourth of four steps
        (LINEAR, {"lr_scheduler_type": "constant"}, 0.05),
        (LINEAR, {"max_steps": 8}, 0.03125),
        (DECAYED, {"lr_decay_factor": 0.1}, 0.025),  # as before
        (DECAYED | {"warmup_steps": 1}, {"lr_decay_factor": 0.1}, 0.005),
    ],
)
def test_a_resumed_schedule_is_the_new_one_where_it_is_computed_from_the_step(tmp_path, caplog, before, now, rate):
    common = {"max_steps": 4, "save_steps": 2, "save_total_limit": None, "logging_steps": 1} | before
    resumed(tmp_path, **common).train()
    trainer = resumed(tmp_path, **(common | now))
    with caplog.at_level("WARNING", "hfkd"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    rates = {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry}
    assert rates[4] == pytest.approx(rate)
    said = next(record.getMessage() for record in caplog.records if "it is resumed with" in record.getMessage())
    assert ("is that of the new settings" in said) is bool(now.keys() & {"lr_scheduler_type", "max_steps"})


@pytest.mark.parametrize(
    ("before", "now"),
    [(DECAYED, {}), ({}, DECAYED), (DECAYED, {**DECAYED, "warmup_steps": 1})],
    ids=["linear", "decays", "decays with a warm-up"],
)
def test_another_kind_of_schedule_is_refused(tmp_path, before, now):
    resumed(tmp_path, **before).train()
    with pytest.raises(ValueError, match="checkpoint-2 has the state of another kind of learning rate schedule, with"):
        resumed(tmp_path, max_steps=3, **now).train(resume_from_checkpoint=True)


def test_a_run_whose_order_of_rows_is_drawn_otherwise_is_not_resumed(tmp_path):
    resumed(tmp_path).train()
    with pytest.raises(ValueError, match="use_seedable_sampler=True, and this run has use_seedable_sampler=False"):
        resumed(tmp_path, accelerator_config={"use_seedable_sampler": False}).train(resume_from_checkpoint=True)


def test_rows_that_are_skipped_no_more_are_said(tmp_path, caplog):
    resumed(tmp_path).train()
    with caplog.at_level("WARNING", "hfkd"):
        resumed(tmp_path, ignore_data_skip=True, max_steps=3).train(resume_from_checkpoint=True)
    assert "starts again with its first rows, which are trained on twice" in caplog.text


class Powered:
    """A weighting whose class has no repr."""

    def __init__(self, power, table="/home/me/table.json"):
        self.power, self.table, self._cache = power, table, {}

    def __call__(self, items):
        return items.teacher.entropy(3.0) ** self.power


class Layered(nn.Module):
    """The same as a module, whose repr has its layers only."""

    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, items):
        return items.teacher.entropy(3.0) ** self.power


@pytest.mark.parametrize("kind", [Powered, Layered])
@pytest.mark.parametrize("slot", ["weighting", "objective", "wrapped"])
def test_settings_of_a_slot_of_ones_own_are_the_runs(tmp_path, kind, slot):
    def made(power):
        one = kind(power)
        if slot == "objective":
            return record(objective=[(1.0, "kd"), (2.0, one)])
        return record(weighting=one if slot == "weighting" else Matched(one))

    leave(made(1.0), tmp_path, DistillationLoss())
    made(1.0).refuse_other(tmp_path)
    name = "weighting" if slot == "wrapped" else slot
    with pytest.raises(ValueError, match=rf"its {name} is .*{kind.__name__}\(power=1.0.*{kind.__name__}\(power=2.0"):
        made(2.0).refuse_other(tmp_path)
    assert "/home" not in (tmp_path / FILE).read_text()
