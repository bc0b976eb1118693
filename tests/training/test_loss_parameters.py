"""A learned temperature in the trainer: trained, saved beside the student, resumed, and the student stays plain."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from toys import Net, Rows, arguments, teacher
from transformers import AutoModelForImageClassification, TrainerCallback

from hfkd import DistillationTrainer
from hfkd.data import ImageTransform
from hfkd.data.digits import load_digits
from hfkd.losses.base import Temperature, Weighting
from hfkd.losses.learned_temperature import Learned
from hfkd.models import image_classifier
from hfkd.training.checkpoints.manifest import write_manifest

LEARNED = "learned(warmup_epochs=0)"


def make(folder, temperature=LEARNED, student=None, rows=None, taught=None, optimizers=(None, None), **keywords):
    return DistillationTrainer(
        student or Net(),
        taught or teacher(),
        arguments(folder, **keywords),
        train_dataset=rows or Rows(),
        temperature=temperature,
        optimizers=optimizers,
    )


@pytest.mark.parametrize("temperature", [LEARNED, "learned(instance=True, warmup_epochs=0)"])
def test_it_trains_in_the_students_optimizer(tmp_path, temperature):
    trainer = make(tmp_path, temperature)
    before = {k: v.clone() for k, v in trainer.distillation_loss.state_dict().items()}
    trainer.train()
    after = trainer.distillation_loss.state_dict()
    assert before
    assert all(not torch.equal(before[k], after[k]) for k in before)
    logs = [entry["temperature"] for entry in trainer.state.log_history if "temperature" in entry]
    assert len(set(logs)) > 1


def test_one_step_is_the_plain_pytorch_step(tmp_path):
    trainer = make(tmp_path, max_steps=1, per_device_train_batch_size=32)
    trainer.train()
    theta, student, taught, rows = torch.ones((), requires_grad=True), Net(), teacher(), Rows()
    t = 1 + 20 * torch.sigmoid(theta)
    p = torch.softmax(taught(rows.images) / t, -1)
    kd = 0.9 * t**2 * (p * (p.log() - torch.log_softmax(student(rows.images) / t, -1))).sum(-1).mean()
    kd.backward()
    torch.testing.assert_close(trainer.distillation_loss.temperature.theta, 1 + 0.1 * theta.grad, rtol=0, atol=1e-6)


class Paced(nn.Module, Temperature):
    """T = t + bias, at a rate of their own."""

    def __init__(self):
        super().__init__()
        self.t, self.bias = nn.Parameter(torch.tensor(4.0)), nn.Parameter(torch.zeros(()))

    def forward(self, items):
        return (self.t + self.bias).expand(len(items))

    def parameter_groups(self):
        return [{"params": [self.t, self.bias], "lr": 0.01}]


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_at_a_rate_of_its_own_it_has_the_weight_decay_of_the_arguments(tmp_path, decay):
    """AdamW's own would be 0.01."""
    trainer = make(tmp_path, Paced(), optim="adamw_torch", weight_decay=decay, max_steps=1)
    trainer.train()
    slot = trainer.distillation_loss.temperature
    found = {id(p): (g["lr"], g["weight_decay"]) for g in trainer.optimizer.param_groups for p in g["params"]}
    assert (found[id(slot.t)], found[id(slot.bias)]) == ((0.01, decay), (0.01, 0.0))
    assert len(found) == 6, "and the student's four"


def test_gradient_clipping_counts_it(tmp_path):
    norms = [make(tmp_path, t, max_steps=1, max_grad_norm=1e9) for t in (LEARNED, "15.621172")]
    for trainer in norms:
        trainer.train()
    with_theta, without = (
        next(entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry) for trainer in norms
    )
    assert with_theta > without


def layers():
    """`Net` as an nn.Sequential, whose forward calls whatever children it has."""
    net = Net()
    body = nn.Sequential(net.conv, nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.head)


def test_a_sequential_student_learns_as_any_other(tmp_path):
    trainers = [make(tmp_path / str(i), student=student) for i, student in enumerate((Net(), layers()))]
    for trainer in trainers:
        trainer.train()
    for mine, its in zip(*(trainer.model.parameters() for trainer in trainers), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-6)
    thetas = [trainer.distillation_loss.temperature.theta for trainer in trainers]
    torch.testing.assert_close(*thetas, rtol=0, atol=1e-6)


@pytest.mark.parametrize("student", [Net, layers])
def test_the_student_is_saved_without_it_and_it_comes_back_on_resume(tmp_path, student):
    whole = make(tmp_path / "whole", student=student(), max_steps=4)
    whole.train()
    kept = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    make(tmp_path / "parts", student=student(), max_steps=4, **kept).train()
    checkpoint = tmp_path / "parts" / "checkpoint-2"
    assert all("distillation_loss" not in name for name in load_file(checkpoint / "model.safetensors"))
    assert list(load_file(checkpoint / "distillation.safetensors")) == ["temperature.theta"]
    resumed = make(tmp_path / "parts", student=student(), max_steps=4)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    assert torch.equal(resumed.distillation_loss.temperature.theta, whole.distillation_loss.temperature.theta)


def test_a_checkpoint_of_another_loss_is_refused(tmp_path):
    make(tmp_path, save_strategy="steps", save_steps=2).train()
    save_file({"temperature.other": torch.ones(())}, tmp_path / "checkpoint-2" / "distillation.safetensors")
    write_manifest(tmp_path / "checkpoint-2")  # not damaged: of another loss
    with pytest.raises(ValueError, match="does not have the parameters of Learned"):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_saved_student_is_a_plain_model(tmp_path):
    rows = load_digits()[0].select(range(32)).with_transform(ImageTransform())
    student, taught = (image_classifier("cifar_resnet20", num_labels=10) for _ in range(2))
    trainer = make(tmp_path, student=student, rows=rows, taught=taught, max_steps=1)
    trainer.train()
    trainer.save_model()
    student.save_pretrained(tmp_path / "by hand")
    for folder in (tmp_path, tmp_path / "by hand"):
        loaded, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert loaded.state_dict().keys() == student.state_dict().keys()
    assert (tmp_path / "distillation.safetensors").is_file()


def test_the_student_is_plain_before_training_and_however_it_ends(tmp_path):
    trainer, plain = make(tmp_path), Net().state_dict().keys()
    assert trainer.model.state_dict().keys() == plain
    trainer.step = lambda *a: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert trainer.model.state_dict().keys() == plain
    assert len(list(trainer.model.parameters())) == len(plain)


def test_training_a_second_time_goes_on_with_the_same_optimizer(tmp_path):
    """Twice three steps of momentum are six, since Trainer keeps the optimizer."""
    twice, six = (
        make(tmp_path / str(n), optim_args="momentum=0.9", max_steps=n, per_device_train_batch_size=32) for n in (3, 6)
    )
    twice.train()
    twice.train()
    six.train()
    theta, wanted = (trainer.distillation_loss.temperature.theta for trainer in (twice, six))
    torch.testing.assert_close(theta, wanted)
    for name, value in six.model.state_dict().items():
        torch.testing.assert_close(twice.model.state_dict()[name], value)


@pytest.mark.parametrize("temperature", [LEARNED, "4.0"])
def test_a_student_trained_before_is_rid_of_the_earlier_loss(tmp_path, temperature):
    first = make(tmp_path, max_steps=1)
    first.train()
    again = make(tmp_path / "other", temperature, student=first.model)
    assert again.record.student == first.record.student
    again.train()
    mine = {id(p) for p in [*again.model.parameters(), *again.distillation_loss.parameters()]}
    assert {id(p) for group in again.optimizer.param_groups for p in group["params"]} == mine


@pytest.mark.parametrize("how", ["optimizers=", "an attribute", "create_optimizer, early"])
@pytest.mark.parametrize("temperature", [LEARNED, "learned(instance=True, warmup_epochs=0)"])
def test_another_optimizer_than_the_trainers_trains_it_too(tmp_path, caplog, temperature, how):
    torch.manual_seed(0)
    whole = make(tmp_path / "whole", temperature)
    whole.train()
    torch.manual_seed(0)
    student = Net()
    own = torch.optim.SGD(student.parameters(), lr=0.1)
    trainer = make(
        tmp_path / "own", temperature, student, **({"optimizers": (own, None)} if how == "optimizers=" else {})
    )
    if how == "an attribute":
        trainer.optimizer = own
    elif how == "create_optimizer, early":
        trainer.create_optimizer()
    trainer.train()
    assert (
        "are added to the optimizer that was passed, as a separate group: {'lr': 0.1, 'weight_decay': 0" in caplog.text
    )
    for name, value in whole.distillation_loss.state_dict().items():
        torch.testing.assert_close(trainer.distillation_loss.state_dict()[name], value, msg=name)


def test_an_optimizer_that_has_it_already_is_left_alone(tmp_path, caplog):
    student, temperature = Net(), Learned(warmup_epochs=0)
    own = torch.optim.SGD([{"params": student.parameters()}, {"params": temperature.parameters(), "lr": 1.0}], lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(own)
    make(tmp_path, temperature, student, optimizers=(own, schedule)).train()
    assert len(own.param_groups) == 2
    assert temperature.theta != 1
    assert "joins" not in caplog.text


def test_a_schedule_that_would_not_move_its_rate_is_refused(tmp_path):
    student = Net()
    own = torch.optim.SGD(student.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(own)
    with pytest.raises(
        ValueError,
        match=r"Learned.* has trainable parameters, which optimizers=\(optimizer, scheduler\) do not include",
    ):
        make(tmp_path / "run", student=student, optimizers=(own, schedule))
    assert not list(tmp_path.iterdir())


def test_a_subclass_whose_optimizer_leaves_it_out_is_told_before_the_first_step(tmp_path):
    class OwnOptimizer(DistillationTrainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.SGD([self.model.head.weight], lr=0.1)
            return self.optimizer

    trainer = OwnOptimizer(Net(), teacher(), arguments(tmp_path), train_dataset=Rows(), temperature=LEARNED)
    with pytest.raises(ValueError, match=r"Learned.* has trainable parameters, which the optimizer does not include"):
        trainer.train()
    assert trainer.state.global_step == 0


# ---- running statistics, which nothing trains ------------------------------------------------------------------------


class Centred(nn.Module):
    """The teacher's entropy beside its running mean, in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, items):
        entropy = items.teacher.entropy(3.0)
        self.mean.mul_(0.9).add_(0.1 * entropy.mean())
        return entropy / self.mean


class Counting:
    """The same in an attribute, which is in no checkpoint."""

    mean = 0.0

    def __call__(self, items):
        entropy = items.teacher.entropy(3.0)
        self.mean = 0.9 * self.mean + 0.1 * entropy.mean()
        return entropy / self.mean


def centred(folder, **keywords):
    given = Net(), teacher(), arguments(folder, max_steps=4, learning_rate=0.01, **keywords)
    return DistillationTrainer(*given, train_dataset=Rows(), weighting=Centred())


def test_buffers_of_a_loss_that_learns_nothing_come_back_on_resume(tmp_path, caplog):
    whole = centred(tmp_path / "whole")
    whole.train()
    centred(tmp_path / "parts", save_strategy="steps", save_steps=2).train()
    checkpoint = tmp_path / "parts" / "checkpoint-2"
    assert list(load_file(checkpoint / "distillation.safetensors")) == ["weighting.mean"]
    resumed = centred(tmp_path / "parts")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(resumed.distillation_loss.weighting.mean, whole.distillation_loss.weighting.mean)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    (checkpoint / "distillation.safetensors").unlink()  # as plain Trainer writes it
    write_manifest(checkpoint)
    centred(tmp_path / "parts").train(resume_from_checkpoint=str(checkpoint))
    assert "does not have the buffers of the loss, weighting.mean: they start anew" in caplog.text


def test_state_in_an_attribute_is_warned_of(tmp_path, caplog):
    given = Net(), teacher(), arguments(tmp_path)
    DistillationTrainer(*given, train_dataset=Rows(), weighting=Counting())
    assert "The weighting changes its attribute mean when it is called" in caplog.text
    caplog.clear()
    centred(tmp_path)
    assert "changes its attribute" not in caplog.text


class KeepsBest(TrainerCallback):
    """As a notebook's: it saves and copies the student that it is given, and goes back to an earlier one."""

    def __init__(self, folder):
        self.folder = folder

    def on_step_end(self, args, state, control, model, **keywords):
        if state.global_step == 1:
            self.kept, self.copy = {name: value.clone() for name, value in model.state_dict().items()}, deepcopy(model)
            if hasattr(model, "save_pretrained"):
                model.save_pretrained(self.folder)
        elif state.global_step == args.max_steps:
            model.load_state_dict(self.kept)


def images():
    return load_digits()[0].select(range(32)).with_transform(ImageTransform())


@pytest.mark.parametrize("kind", ["bare", "of transformers", "sequential"])
def test_a_callback_has_the_students_own_weights(tmp_path, kind):
    rows = images() if kind == "of transformers" else Rows()
    student, taught = {
        "bare": lambda: (Net(), teacher()),
        "of transformers": lambda: [image_classifier(f"cifar_resnet{n}", 10) for n in (8, 20)],
        "sequential": lambda: (nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(192, 5))), teacher()),
    }[kind]()
    own, trainer = student.state_dict().keys(), make(tmp_path / "run", student=student, taught=taught, rows=rows)
    best = KeepsBest(tmp_path / "best")
    trainer.add_callback(best)
    theta = trainer.distillation_loss.temperature.theta.clone()
    trainer.train()
    assert trainer.distillation_loss.temperature.theta != theta
    assert best.kept.keys() == best.copy.state_dict().keys() == own
    assert all(torch.equal(value, best.kept[name]) for name, value in student.state_dict().items())
    if kind == "of transformers":
        saved = load_file(tmp_path / "best" / "model.safetensors")
        assert len(saved) == len(own)
        assert not [name for name in saved if "distillation_loss" in name]
    with pytest.raises(RuntimeError, match="Missing key"):  # of the student's own
        student.load_state_dict({})


class Table:
    """What a slot keeps in an object of its own."""

    def __init__(self):
        self.mean, self.seen, self.rows = 0.0, np.zeros(3), {"mean": 0.0}


class Keeping(Weighting):
    """The same in other places that no checkpoint has."""

    def __init__(self, kind):
        self.kind, self.means, self.rows, self.table = kind, [0.0] * 3, {"mean": 0.0}, Table()
        self.torchs, self.numpys = torch.Generator().manual_seed(0), np.random.default_rng(0)

    def __call__(self, items):
        return getattr(self, self.kind)(items.teacher.entropy(3.0))

    def in_a_list(self, entropy):
        self.means[0] += float(entropy.mean())
        return entropy

    def in_a_dict(self, entropy):
        self.rows["mean"] += float(entropy.mean())
        return entropy

    def in_an_array(self, entropy):
        self.table.seen[0] += 1
        return entropy

    def in_an_object(self, entropy):
        self.table.mean += 1
        return entropy

    def of_torch(self, entropy):
        return entropy * torch.rand(len(entropy), generator=self.torchs)

    def of_numpy(self, entropy):
        return entropy * torch.from_numpy(self.numpys.random(len(entropy))).float()

    def nothing(self, entropy):
        return entropy


class Lost(nn.Module):
    """A buffer that is not in the state dict."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def forward(self, items):
        self.mean += 1
        return items.teacher.entropy(3.0)

    def weights(self, items):
        return self(items)


class Within(nn.Module):
    """An attribute of a module in it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Identity())
        self.counter = Counter()

    def forward(self, items):
        return self.counter(items.teacher.entropy(3.0))


class Counter(nn.Module):
    count = 0

    def forward(self, x):
        self.count += 1
        return x


@pytest.mark.parametrize(
    ("weighting", "name"),
    [
        (Keeping("in_a_list"), "means"),
        (Keeping("in_a_dict"), "rows"),
        (Keeping("in_an_array"), "table"),
        (Keeping("in_an_object"), "table"),
        (Keeping("of_torch"), "torchs"),
        (Keeping("of_numpy"), "numpys"),
        (Keeping("nothing"), None),
        (Counting().__call__, "mean"),
        (partial(Counting()), "mean"),
        (Lost(), "mean"),
        (Lost().weights, "mean"),
        (Within(), "counter.count"),
    ],
)
def test_so_is_state_in_any_other_place(tmp_path, caplog, weighting, name):
    given = Net(), teacher(), arguments(tmp_path)
    DistillationTrainer(*given, train_dataset=Rows(), weighting=weighting)
    assert ("changes its attribute" in caplog.text) == (name is not None)
    assert f"changes its attribute {name} when" in caplog.text or name is None


class Unread(Learned):
    """A parameter that no value depends on."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Parameter(torch.ones(()))


def test_a_parameter_of_the_loss_without_a_gradient_is_named_as_such(tmp_path, caplog):
    DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=Rows(), temperature=Unread()).train()
    assert "temperature.spare of the loss got no gradient at the first step" in caplog.text
    assert "of several outputs the first" not in caplog.text
