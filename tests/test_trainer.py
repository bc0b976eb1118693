import json
import math

import pytest
import reference
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toys import CLASSES, Net, Rows, arguments, teacher
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from hfkd import DistillationTrainer
from hfkd.data import ImageTransform
from hfkd.data.digits import load_digits
from hfkd.evaluation.metrics import item_accuracy, topk_predictions
from hfkd.losses.logits import DKD
from hfkd.losses.temperatures import Energy
from hfkd.models import image_classifier, input_spec
from hfkd.training.forward.micro_batch import MicroBatch


def make(tmp_path, student=None, taught=None, rows=None, slots=None, **keywords):
    return DistillationTrainer(
        student or Net(),
        taught or teacher(),
        arguments(tmp_path / "run", **keywords),
        train_dataset=Rows() if rows is None else rows,
        eval_dataset=Rows(13, seed=3),
        **(slots or {}),
    )


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


# ---- the loss ---------------------------------------------------------------------------------------------------


def test_one_step_is_the_plain_pytorch_step(tmp_path):
    """KD with SGD against ten lines of PyTorch, on the whole set in one batch."""
    trainer = make(tmp_path, max_steps=1, per_device_train_batch_size=32)
    trainer.train()

    student, taught, rows = Net(), teacher(), Rows()
    p = torch.softmax(taught(rows.images) / 4, -1).detach()
    log_q = torch.log_softmax(student(rows.images) / 4, -1)
    kd = 16 * (p * (p.log() - log_q)).sum(-1).mean()
    (0.1 * F.cross_entropy(student(rows.images), rows.labels) + 0.9 * kd).backward()
    for mine, theirs in zip(student.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine - 0.1 * mine.grad, rtol=0, atol=1e-6)


def test_keywords_win_over_arguments(tmp_path):
    slots = {"objective": DKD(beta=2.0), "temperature": Energy(thresholds=(-9.0, -5.0)), "kd_weight": 0.5}
    trainer = make(tmp_path, slots=slots, objective="kd", temperature="2.0", weighting="entropy", ce_weight=0.3)
    loss = trainer.distillation_loss
    assert (loss.objective, loss.temperature.thresholds) == (DKD(beta=2.0), (-9.0, -5.0))
    assert (type(loss.weighting).__name__, loss.ce_weight, loss.kd_weight) == ("Entropy", 0.3, 0.5)


def test_the_wrapped_model_is_the_one_that_runs(tmp_path):
    """compute_loss uses its `model` argument: calling self.model would go around DDP and torch.compile."""
    trainer = make(tmp_path)

    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, *a, **k):
            self.calls += 1
            return self.inner(*a, **k)

    wrapped = Wrapped(trainer.model).train()
    trainer.compute_loss(wrapped, trainer.data_collator([Rows()[0], Rows()[1]]))
    assert wrapped.calls == 1


def test_labels_only_needs_no_teacher_and_says_so(tmp_path):
    args = arguments(tmp_path)
    with pytest.raises(ValueError, match=r"kd_weight=0.9 needs a teacher"):
        DistillationTrainer(Net(), None, args, train_dataset=Rows())
    trainer = DistillationTrainer(Net(), None, args, train_dataset=Rows(), ce_weight=1.0, kd_weight=0.0)
    trainer.train()
    assert logged(trainer, "loss") == pytest.approx(logged(trainer, "ce"), rel=1e-5)


def test_no_device_sync_in_the_loss(tmp_path):
    """Reading a number off the device stalls a GPU: no `.item()` from the forward to the parts that will be logged."""
    trainer = make(tmp_path, slots={"temperature": Energy(thresholds=(-9.0, -5.0)), "weighting": "entropy"})

    class NoSync(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function is not torch.ops.aten._local_scalar_dense.default, "a tensor was read back"
            return function(*args, **(kwargs or {}))

    batch = trainer.data_collator([Rows()[i] for i in range(8)])
    with NoSync():
        trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=8).backward()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
@pytest.mark.parametrize("objective", ["kd", "mld"])
def test_compiled_networks_and_loss_change_nothing_but_rounding(tmp_path, objective):
    slots = {"temperature": Energy(thresholds=(-9.0, -5.0)), "weighting": "entropy", "objective": objective}
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        trainer = make(tmp_path / str(compiled), slots=slots, rows=Rows(28), max_steps=5, torch_compile=compiled)
        trainer.train()  # the last batch of each epoch is half of one
        assert (trainer.distillation_loss._compiled_call_impl is not None) == compiled
        found.append([logged(trainer, key) for key in ("loss", "kd", "low_energy_share")] + [trainer.evaluate()])
    for plain, compiled in zip(*found, strict=True):
        if isinstance(plain, dict):
            assert compiled["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-4)
        else:
            assert compiled == pytest.approx(plain, rel=1e-4)


def test_the_logged_norm_is_the_whole_gradients(tmp_path):
    trainer = make(tmp_path, max_steps=1, per_device_train_batch_size=32)
    trainer.train()
    rows = Rows()
    student = Net()
    batch = MicroBatch({"pixel_values": rows.images, "labels": rows.labels}, 32)
    loss, _, _ = trainer.step(student, trainer.teacher, batch)
    loss.backward()
    expected = math.sqrt(sum(p.grad.square().sum().item() for p in student.parameters()))
    assert logged(trainer, "grad_norm")[0] == pytest.approx(expected, rel=1e-4)


def test_a_cpu_pins_no_memory(tmp_path):
    """torch warns of it at each loader, and warnings are errors here."""
    trainer = make(tmp_path, max_steps=1, dataloader_pin_memory=True)
    trainer.train()
    trainer.evaluate()
    assert not trainer.get_train_dataloader().pin_memory


# ---- teacher ----------------------------------------------------------------------------------------------------


def test_the_teacher_stays_frozen_evaluating_and_out_of_every_checkpoint(tmp_path):
    taught = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Dropout(0.5), nn.Linear(192, CLASSES))
    before = {k: v.clone() for k, v in taught.state_dict().items()}
    trainer = make(tmp_path, taught=taught, save_strategy="steps", save_steps=3)
    modes = []
    taught.register_forward_hook(lambda module, *a: modes.append(any(part.training for part in module.modules())))
    trainer.train()
    assert modes
    assert not any(modes)
    assert all(torch.equal(v, before[k]) for k, v in taught.state_dict().items())
    files = {p.name for p in (tmp_path / "run" / "checkpoint-3").iterdir()}
    assert "distillation.json" in files
    from safetensors.torch import load_file

    assert set(load_file(tmp_path / "run" / "checkpoint-3" / "model.safetensors")) == set(Net().state_dict())


def test_a_teacher_gets_its_own_normalisation(tmp_path):
    """Two teachers of the same weights, one trained with other statistics, are one function of the original images."""
    train, _ = load_digits()
    transform = ImageTransform(mean=(0.2,) * 3, std=(0.3,) * 3)
    train.set_transform(transform)
    taught = image_classifier("cifar_resnet20", 10)
    assert input_spec(taught).mean != transform.mean
    trainer = DistillationTrainer(Net(classes=10), taught, arguments(tmp_path), train_dataset=train)
    rows = trainer.data_collator([train[i] for i in range(4)])
    own = train.with_transform(ImageTransform())
    expected = taught(trainer.data_collator([own[i] for i in range(4)])["pixel_values"]).logits
    torch.testing.assert_close(trainer.teacher(**rows), expected, rtol=1e-4, atol=1e-4)


def test_training_records_the_statistics_the_student_knows(tmp_path):
    train, _ = load_digits()
    train.set_transform(ImageTransform(mean=(0.2,) * 3, std=(0.3,) * 3))
    student = image_classifier("cifar_resnet20", 10)
    trainer = DistillationTrainer(student, teacher(10), arguments(tmp_path, max_steps=1), train_dataset=train)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    assert input_spec(loaded).mean == (0.2,) * 3


# ---- what users bring -------------------------------------------------------------------------------------------


class PilRows(Rows):
    def __getitem__(self, i):
        return {"pixel_values": Image.new("RGB", (8, 8), (int(i) * 7 % 255, 30, 200)), "labels": int(self.labels[i])}


class WithLogits(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net(seed=2)

    def forward(self, pixel_values):
        return type("Output", (), {"logits": self.net(pixel_values)})()


def vit():
    torch.manual_seed(0)
    size = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return ViTForImageClassification(ViTConfig(**size, intermediate_size=16, num_labels=CLASSES))


@pytest.mark.parametrize("rows", [Rows, PilRows])
@pytest.mark.parametrize("student", [Net, WithLogits, vit, lambda: image_classifier("cifar_resnet20", CLASSES)])
def test_plain_rows_and_any_network_with_every_slot_and_the_scan(tmp_path, rows, student):
    slots = {"temperature": "energy(ratio=0.25)", "weighting": "entropy", "objective": "dkd"}
    trainer = make(tmp_path, student=student(), taught=vit(), rows=rows(), slots=slots)
    trainer.train()
    assert len(trainer.scan_result.energy) == 32
    assert all(math.isfinite(x) for x in logged(trainer, "loss"))
    assert math.isfinite(trainer.evaluate()["eval_loss"])


@pytest.mark.parametrize("objective", ["dkd(beta=2.0, warmup_epochs=0)", "average(objective='dkd(warmup_epochs=0)')"])
def test_smoothed_mixed_labels_count_whole(tmp_path, objective):
    """As timm's Mixup makes them, smoothed by 0.1: no class's share is left out of DKD."""

    class Smoothed(Rows):
        def __getitem__(self, i):
            one, other = (F.one_hot(self.labels[i - k], CLASSES).float() for k in (0, 1))
            return {"pixel_values": self.images[i], "labels": 0.9 * (0.7 * one + 0.3 * other) + 0.1 / CLASSES}

    rows = Smoothed()
    trainer = make(tmp_path, rows=rows, max_steps=1, per_device_train_batch_size=32, slots={"objective": objective})
    trainer.train()
    z, v = (net(rows.images).double().tolist() for net in (teacher(), Net()))
    labels = [row["labels"] for row in rows]
    beta = 2.0 if "beta" in objective else 8.0
    of_class = lambda n: lambda c: reference.dkd(z[n], v[n], c, 4.0, beta=beta, warmup=0)  # noqa: E731
    expected = [reference.over_classes(labels[n], of_class(n)) for n in range(32)]
    assert logged(trainer, "kd")[0] == pytest.approx(sum(expected) / 32, rel=1e-5)


def test_the_logged_shares_are_those_of_the_temperatures_that_were_used(tmp_path):
    epoch = {"max_steps": -1, "num_train_epochs": 1, "learning_rate": 0.0, "logging_strategy": "epoch"}
    trainer = make(tmp_path, slots={"temperature": "energy(ratio=0.25, increase=2.1, decrease=2.1)"}, **epoch)
    trainer.train()
    for side in ("low_energy_share", "high_energy_share"):
        assert logged(trainer, side) == [0.25], side


def test_compute_metrics_and_evaluation_without_the_teacher(tmp_path):
    trainer = DistillationTrainer(
        Net(),
        teacher(),
        arguments(tmp_path),
        train_dataset=Rows(),
        eval_dataset=Rows(13, seed=3),
        compute_metrics=item_accuracy,
        preprocess_logits_for_metrics=topk_predictions,
    )
    rows = Rows(13, seed=3)
    expected = Net()(rows.images)
    trainer.teacher = None
    scores = trainer.evaluate()
    assert scores["eval_loss"] == pytest.approx(F.cross_entropy(expected, rows.labels).item(), abs=1e-6)
    assert scores["eval_accuracy"] == pytest.approx((expected.argmax(-1) == rows.labels).float().mean().item())


def test_mixed_labels_count_images(tmp_path):
    class Mixed(Rows):
        def __getitem__(self, i):
            mixed = 0.5 * F.one_hot(self.labels[i], CLASSES) + 0.5 * F.one_hot(self.labels[i - 1], CLASSES)
            return {"pixel_values": self.images[i], "labels": mixed.float()}

    trainer = make(tmp_path, rows=Mixed(), max_steps=1, per_device_train_batch_size=32)
    trainer.train()
    assert logged(trainer, "loss")[0] == pytest.approx(
        0.1 * logged(trainer, "ce")[0] + 0.9 * logged(trainer, "kd")[0], rel=1e-5
    )


# ---- optimizer --------------------------------------------------------------------------------------------------


def test_multi_step_decay_falls_after_the_given_epochs(tmp_path):
    trainer = make(tmp_path, max_steps=-1, num_train_epochs=4, lr_decay_epochs=[1, 3], logging_strategy="epoch")
    trainer.train()
    assert logged(trainer, "learning_rate") == pytest.approx([0.1, 0.01, 0.01, 0.001])


@pytest.mark.parametrize(("everything", "expected"), [(True, 4), (False, 2)])
def test_weight_decay_on_biases_when_the_protocol_says_so(tmp_path, everything, expected):
    trainer = make(tmp_path, weight_decay=5e-4, decay_bias_and_norm=everything)
    decayed = [g for g in trainer.create_optimizer().param_groups if g["weight_decay"] == 5e-4]
    assert sum(len(g["params"]) for g in decayed) == expected


# ---- views, precision, resume -----------------------------------------------------------------------------------


def test_each_epoch_has_its_own_views(tmp_path):
    train, _ = load_digits()
    train = train.select(range(32))
    transform = ImageTransform(augment=True, padding=1, flip=False)
    train.set_transform(transform)
    seen = []

    class Watched(Net):
        def forward(self, x):
            if self.training:
                seen.append((int(transform.epoch), x.sum().item()))
            return super().forward(x)

    student = Watched(classes=10)
    trainer = make(tmp_path, student=student, taught=teacher(10), rows=train, max_steps=-1, num_train_epochs=3)
    trainer.eval_dataset = None
    trainer.train()
    assert sorted({epoch for epoch, _ in seen}) == [0, 1, 2]
    assert len({round(sum(s for e, s in seen if e == epoch), 2) for epoch in range(3)}) == 3


def test_bf16_and_channels_last_change_the_loss_by_rounding_only(tmp_path):
    plain = make(tmp_path / "a", student=Net(16), max_steps=10, bf16=False, channels_last=False)
    fast = make(tmp_path / "b", student=Net(16), max_steps=10, bf16=True, channels_last=True)
    plain.train(), fast.train()
    assert fast.model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert logged(fast, "loss") == pytest.approx(logged(plain, "loss"), rel=0.02)
    assert logged(fast, "loss") != logged(plain, "loss")


def test_evaluation_is_in_float32_whatever_the_training_is(tmp_path):
    half, whole = (make(tmp_path / str(b), bf16=b, student=Net(16), evaluate_kl=True) for b in (True, False))
    one, other = half.evaluate(), whole.evaluate()
    half.args.float32_evaluation = False
    rounded = half.evaluate()
    for name in ("eval_loss", "eval_kl"):
        assert one[name] == other[name]
        assert rounded[name] != other[name]


def test_evaluation_in_float32_runs_the_hooks_on_the_student(tmp_path):
    """Such as one that normalises its inputs, or that keeps its outputs for a metric."""
    losses = []
    for bf16 in (True, False):
        student, kept = Net(16), []
        student.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3,))
        student.register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output.dtype))
        trainer = make(tmp_path / str(bf16), bf16=bf16, student=student)
        kept.clear()
        losses.append(trainer.evaluate()["eval_loss"])
        assert set(kept) == {torch.float32}
    assert losses[0] == losses[1] != make(tmp_path / "without", bf16=False, student=Net(16)).evaluate()["eval_loss"]


def test_weights_are_rounded_for_evaluation_and_images_are_not(tmp_path):
    """Without autocast a convolution of such weights takes no float32 images: an error after the whole training."""
    rounded = make(tmp_path / "rounded", bf16=True, bf16_full_eval=True, student=Net(16), evaluate_kl=True)
    whole = make(tmp_path / "whole", bf16=True, student=Net(16), evaluate_kl=True)
    rounded.train(), whole.train()
    one, other = rounded.evaluate(), whole.evaluate()
    for name in ("eval_loss", "eval_kl"):
        assert one[name] == pytest.approx(other[name], rel=0.05)
        assert one[name] != other[name]
    assert logged(rounded, "loss") == logged(whole, "loss")


def test_an_evaluation_after_an_interrupt_is_outside_of_training(tmp_path, monkeypatch):
    """Its weights are rounded as bf16_full_eval says, and as those of the next trainer are."""
    stopped = make(tmp_path, bf16=True, bf16_full_eval=True, student=Net(16))
    monkeypatch.setattr(stopped, "_maybe_log_save_evaluate", stop_after(stopped, 2))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    found = stopped.evaluate()["eval_loss"]
    fresh = make(tmp_path, bf16=True, bf16_full_eval=True, student=stopped.model)
    assert found == fresh.evaluate()["eval_loss"]
    fresh.args.bf16_full_eval = False
    assert found != fresh.evaluate()["eval_loss"]


def test_resumed_training_is_bit_identical_and_keeps_its_thresholds(tmp_path, monkeypatch):
    train, _ = load_digits()
    train = train.select(range(64))
    train.set_transform(ImageTransform(augment=True, padding=1, flip=False))
    slots = {"temperature": "energy", "weighting": "entropy"}
    keywords = {"max_steps": 12, "save_strategy": "steps", "save_steps": 5}

    def new(folder):
        trainer = make(
            tmp_path / folder, student=Net(classes=10), taught=teacher(10), rows=train, slots=slots, **keywords
        )
        trainer.eval_dataset = None
        return trainer

    whole = new("whole")
    whole.train()
    killed = new("resumed")
    killed.args.max_steps = 12
    monkeypatch.setattr(killed, "_maybe_log_save_evaluate", stop_after(killed, 7))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = new("resumed")
    monkeypatch.setattr(
        "hfkd.training.statistics.scan", lambda *a, **k: pytest.fail("the thresholds were scanned again")
    )
    resumed.train(resume_from_checkpoint=True)
    assert resumed.distillation_loss.temperature.thresholds == whole.distillation_loss.temperature.thresholds
    for name, parameter in whole.model.state_dict().items():
        assert torch.equal(parameter, resumed.model.state_dict()[name]), name
    assert logged(whole, "loss")[-7:] == logged(resumed, "loss")[-7:]


def stop_after(trainer, step):
    inner = trainer._maybe_log_save_evaluate

    def stop(*a, **k):
        inner(*a, **k)
        if trainer.state.global_step == step:
            raise KeyboardInterrupt

    return stop


def test_a_half_written_checkpoint_is_passed_over(tmp_path, caplog):
    trainer = make(tmp_path, save_strategy="steps", save_steps=1, max_steps=3)
    trainer.train()
    (tmp_path / "run" / "checkpoint-3" / "trainer_state.json").unlink()
    again = make(tmp_path, max_steps=4)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert "checkpoint-3 is not complete" in caplog.text


def test_nothing_to_resume_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(
        ValueError, match="No valid checkpoint found in output directory .*: there is no complete checkpoint"
    ):
        make(tmp_path).train(resume_from_checkpoint=True)


# ---- bad input --------------------------------------------------------------------------------------------------


def broken_teacher():
    net = teacher()
    with torch.no_grad():
        net.head.bias[0] = float("nan")
    return net


class NoLabels(Rows):
    def __getitem__(self, i):
        return {"pixel_values": self.images[i], "target": 0}


BAD = {
    "unknown slot": ({"slots": {"weighting": "entrpy"}}, "unknown weighting 'entrpy'"),
    "class counts": ({"taught": teacher(7)}, "teacher has 7 classes and the student 5"),
    "labels out of range": ({"rows": Rows(classes=9)}, "labels run from 0 to 1, but|labels run from"),
    "missing column": ({"rows": NoLabels()}, "rows have no labels .they have"),
    "empty dataset": ({"rows": Rows(0)}, "train_dataset is empty"),
    "NaN teacher": ({"taught": broken_teacher()}, "teacher's logits are NaN"),
    "ratio": ({"slots": {"temperature": "energy(ratio=0.6)"}}, r"ratio=0.6 must be in \(0, 0.5\]"),
    "temperature - decrease": (
        {"slots": {"temperature": "energy(temperature=2, decrease=2)"}},
        "decrease=0 must be a number from 0.001",
    ),
    "upper_bound": (
        {"slots": {"weighting": "entropy(upper_bound=0)"}},
        "upper_bound=0 must be a finite number above 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_at_construction_and_nothing_is_written(tmp_path, case):
    keywords, message = BAD[case]
    if case == "labels out of range":
        keywords = {"rows": type("Late", (Rows,), {"__getitem__": lambda self, i: Rows.__getitem__(self, 8 - i)})(9, 9)}
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **keywords)
    assert list(tmp_path.iterdir()) == []


def test_an_output_dir_that_holds_another_run_is_refused_and_left_alone(tmp_path):
    make(tmp_path, save_strategy="steps", save_steps=3).train()
    before = (tmp_path / "run" / "distillation.json").read_text()
    with pytest.raises(ValueError, match=r"contains another run: its objective is KD.*choose another output_dir"):
        make(tmp_path, slots={"objective": "dkd"})
    assert (tmp_path / "run" / "distillation.json").read_text() == before
    assert json.loads(before)["loss"]["objective"] == "KD(scale='squared')"
    make(tmp_path)  # the same run is welcome


def test_what_is_elsewhere_than_in_trainer_is_said(tmp_path):
    with pytest.raises(ValueError, match="args is a dict: pass hfkd.DistillationArguments, or TrainingArguments"):
        DistillationTrainer(Net(), teacher(), {"output_dir": str(tmp_path)}, train_dataset=Rows())
    with pytest.raises(ValueError, match="tokenizer= is called processing_class="):
        DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=Rows(), tokenizer=None)


@pytest.mark.parametrize("asked", [True, None])
def test_accumulated_batches_are_one_step_whichever_version_of_transformers(tmp_path, monkeypatch, asked):
    """Versions without `loss_is_scaled_for_ga` do as later ones do where it is None."""
    monkeypatch.setattr(DistillationTrainer, "loss_is_scaled_for_ga", asked)
    weights = []
    for size, parts in ((8, 1), (2, 4)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "max_steps": 1}
        trainer = DistillationTrainer(
            Net(), teacher(), arguments(tmp_path / str(parts), **settings), train_dataset=Rows(8)
        )
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-6)
