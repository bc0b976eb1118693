"""What somebody builds on hfkd: a temperature that is fitted, a task, a teacher, a trainer. Mistakes are named."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import Net, Rows, arguments, teacher
from transformers import TrainerCallback

from hfkd import DistillationLoss, DistillationTrainer
from hfkd.losses.base import Objective, Requirements, Temperature
from hfkd.losses.items import Items
from hfkd.losses.outputs import Outputs
from hfkd.losses.temperatures import Energy, Fitted
from hfkd.tasks.base import TASKS, register_task
from hfkd.tasks.rows import PerRow
from hfkd.teachers import Teacher


def make(folder, kind=DistillationTrainer, student=None, taught=None, rows=None, slots=(), **keywords):
    given = student or Net(), taught or teacher(), arguments(folder / "run", **keywords)
    return kind(*given, train_dataset=rows or Rows(), **dict(slots))


# ---- a temperature that is fitted ------------------------------------------------------------------------------------


class Around(Fitted):
    """T = 2 + 2 sigmoid((E - mean) / std)."""

    energy_temperature = 4.0

    def __init__(self):
        self.mean = self.std = None

    @property
    def thresholds_or_none(self):
        return None if self.mean is None else (self.mean, self.std)

    def fit(self, energies):
        self.mean, self.std = energies.mean().item(), energies.std().item()

    def restore(self, thresholds):
        self.mean, self.std = thresholds

    def __call__(self, items):
        return 2 + 2 * torch.sigmoid((items.teacher.energy(4.0) - self.mean) / self.std)


class OneNumber(Around):
    thresholds_or_none = property(lambda self: self.mean)


class Tensors(Around):
    def fit(self, energies):
        self.mean, self.std = energies.mean(), energies.std()


class Forgetful(Around):
    def restore(self, thresholds):
        self.mean = thresholds[0]


class Unsaid(Around):
    energy_temperature = None


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OneNumber, r"thresholds_or_none is -10\.5 after fit\(\), and must be a tuple of finite numbers"),
        (Tensors, "must be a tuple of finite numbers"),
        (Forgetful, r"restore\(thresholds\) does not set std to what fit\(\) had set"),
        (Unsaid, "Unsaid: energy_temperature=None"),
    ],
)
def test_a_fit_that_would_not_come_back_is_refused_before_the_scan(kind, message):
    with pytest.raises(ValueError, match=message):
        DistillationLoss(temperature=kind())


def test_only_temperatures_are_fitted():
    with pytest.raises(ValueError, match="the weighting Around derives from Fitted, and only a temperature is fitted"):
        DistillationLoss(weighting=Around())


def test_a_fit_of_ones_own_comes_back_on_resume(tmp_path):
    whole = make(tmp_path / "whole", max_steps=4, slots={"temperature": Around()})
    whole.train()
    make(tmp_path, max_steps=4, save_strategy="steps", save_steps=2, slots={"temperature": Around()}).train()
    resumed = make(tmp_path, max_steps=4, slots={"temperature": Around()})
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


# ---- a task ----------------------------------------------------------------------------------------------------------

HEADS, EACH = 2, 3


class TwoHeads(PerRow):
    """A row has a label of each of two heads, whose logits are side by side: [B, 6]."""

    pipeline_tag, item = "image-classification", "a label of an image"
    one_item_a_row = views = lacks_labels = False
    scored_by = None
    wrong = ""

    def count(self, batch):
        return len(batch["labels"]) * (1 if self.wrong == "count" else HEADS)

    def count_labels(self, batch):
        return len(batch["labels"]) * (1 if self.wrong == "count_labels" else HEADS)

    def count_samples(self, batch):
        return len(batch["labels"]) * (HEADS if self.wrong == "count_samples" else 1)

    def items(self, batch, student, teacher, progress=0.0):
        rows = len(student)
        student, teacher = (Outputs(z.reshape(rows * HEADS, EACH)) for z in (student, teacher))
        sample = torch.arange(rows, device=student.logits.device).repeat_interleave(HEADS)
        labels = batch["labels"] if self.wrong == "labels" else batch["labels"].flatten()
        return Items(student, teacher, labels, sample + (self.wrong == "sample"), rows, progress)

    def check_labels(self, labels, classes):
        assert labels.ndim == 2


class TwoLabels(Rows):
    def __getitem__(self, i):
        row = super().__getitem__(i)
        return row | {"labels": torch.tensor([row["labels"] % EACH, (row["labels"] + 1) % EACH])}


@pytest.fixture
def two_heads():
    register_task("two_heads")(TwoHeads)
    yield TwoHeads
    del TASKS["two_heads"]
    TwoHeads.wrong = ""


def headed(folder, **keywords):
    return make(folder, student=Net(classes=6), taught=teacher(6), rows=TwoLabels(), task="two_heads", **keywords)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("count", r"TwoHeads.count returns 2 for the first rows, for which items\(\) has 4: the loss is divided by it"),
        ("count_labels", r"TwoHeads.count_labels returns 2 .* has 4"),
        ("count_samples", r"TwoHeads.count_samples returns 4 .* has 2"),
        ("labels", r"TwoHeads.items has 2 labels for 4 items"),
        ("sample", r"TwoHeads.items has sample numbers from 1 to 2 with num_samples=2"),
    ],
)
def test_a_task_whose_counts_differ_is_refused(tmp_path, two_heads, wrong, message):
    two_heads.wrong = wrong
    with pytest.raises(ValueError, match=message):
        headed(tmp_path)


def test_a_task_of_ones_own_accumulates_as_one_batch(tmp_path, two_heads):
    whole, parts = (
        headed(tmp_path / "a"),
        headed(tmp_path / "b", per_device_train_batch_size=4, gradient_accumulation_steps=2),
    )
    for trainer in (whole, parts):
        trainer.train()
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


# ---- a network that returns something else than logits ---------------------------------------------------------------


class Ending(nn.Module):
    """A network and what it ends with."""

    def __init__(self, network, end):
        super().__init__()
        self.network, self.end = network, end

    def forward(self, pixel_values):
        return self.end(self.network(pixel_values))


@pytest.mark.parametrize("role", ["student", "taught"])
def test_probabilities_are_no_logits(tmp_path, role):
    name = {"taught": "teacher"}.get(role, role)
    with pytest.raises(ValueError, match=f"the {name} returns probabilities .* the loss takes their softmax"):
        make(tmp_path, **{role: Ending(teacher(), nn.Softmax(-1))})


def test_log_probabilities_have_no_energies(tmp_path):
    taught = Ending(teacher(), nn.LogSoftmax(-1))
    with pytest.raises(ValueError, match=r"returns log-probabilities, and Energy\(.* needs its energies"):
        make(tmp_path, taught=taught, slots={"temperature": "energy"})
    make(tmp_path, taught=taught, slots={"weighting": "entropy"}).train()


class Remote(Teacher):
    """Answers from elsewhere: no network runs here."""

    def __call__(self, *, each=False, **inputs):
        return teacher()(inputs["pixel_values"]).detach()


def test_a_teacher_without_a_network_is_not_scanned(tmp_path):
    with pytest.raises(ValueError, match=r"the teacher's energies, and Remote runs no network: return them from known"):
        make(tmp_path, taught=Remote(), slots={"temperature": "energy"})
    make(tmp_path, taught=Remote(), slots={"temperature": Energy(thresholds=(-9.0, -5.0))}).train()


# ---- a trainer -------------------------------------------------------------------------------------------------------

ACCUMULATED = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


class Dropping(DistillationTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs)


class OwnStep(DistillationTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs)) / self.args.gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


def test_a_loss_without_the_count_of_an_accumulated_batch_is_refused(tmp_path, caplog):
    with pytest.raises(ValueError, match="Dropping calls compute_loss without num_items_in_batch, .* 2 accumulated"):
        make(tmp_path, Dropping, **ACCUMULATED).train()
    whole, own = make(tmp_path / "whole", Dropping), make(tmp_path / "own", OwnStep, **ACCUMULATED)
    whole.train()
    assert "without num_items_in_batch" not in caplog.text
    own.train()
    assert caplog.text.count("OwnStep calls compute_loss without num_items_in_batch") == 1
    for one, other in zip(whole.model.parameters(), own.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


# ---- a teacher that changes ------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "own_method.md"


def follows():
    """The callback of the page."""
    code = next(
        code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL) if "Follows" in code
    )
    names = {"torch": torch}
    exec(code.partition("\n\n\nstudent =")[0], names)
    return names["Follows"]


class InPlace(TrainerCallback):
    """The same without a word to anyone."""

    def __init__(self, student, taught):
        self.student, self.taught = student, taught

    def on_step_end(self, args, state, control, **keywords):
        for mine, its in zip(self.taught.parameters(), self.student.parameters(), strict=True):
            mine.data.mul_(0.9).add_(its.data, alpha=0.1)


def averaged(folder, kind, **keywords):
    student, taught = Net(), Net()
    given = student, taught, arguments(folder, max_steps=6, **keywords)
    return taught, DistillationTrainer(*given, train_dataset=Rows(), callbacks=[kind(student, taught)])


def test_a_teacher_that_follows_the_student_comes_back_on_resume(tmp_path, caplog):
    kind = partial(follows(), decay=0.9)
    taught, whole = averaged(tmp_path, kind, save_strategy="steps", save_steps=3)
    whole.train()
    again, resumed = averaged(tmp_path, kind)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for one, other in ((whole.model, resumed.model), (taught, again)):
        for mine, its in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, its)
    assert not torch.equal(taught.head.weight, Net().head.weight)


def test_one_that_no_checkpoint_has_is_said_once(tmp_path, caplog):
    _, trainer = averaged(tmp_path, InPlace, save_strategy="steps", save_steps=2)
    trainer.train()
    assert caplog.text.count("The teacher's weights have changed since the training began") == 1
    caplog.clear()
    make(tmp_path, save_strategy="steps", save_steps=2).train()
    assert "have changed since" not in caplog.text


# ---- one slot for two trainers ---------------------------------------------------------------------------------------


class Warming(nn.Module, Temperature):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, items):
        self.steps += 1
        return (1 + self.steps).expand(len(items))


class Connected(nn.Module, Objective):
    level, softens = "sample", False

    def requirements(self):
        return Requirements(student=("conv",), teacher=("conv",))

    def build(self, context):
        self.layer = nn.Conv2d(context.student.shape("conv")[0], context.teacher.shape("conv")[0], 1)

    def forward(self, items, temperature):
        difference = self.layer(items.student.features["conv"]) - items.teacher.features["conv"]
        return difference.square().mean((1, 2, 3))


ELSEWHERE = "has been trained in another trainer, and begins with what it learned there"


def test_a_slot_that_another_trainer_has_trained_is_said(tmp_path, caplog):
    slots = {"temperature": Warming()}
    first = make(tmp_path / "a", slots=slots, save_strategy="steps", save_steps=2)
    first.train()
    first.train()
    assert ELSEWHERE not in caplog.text
    resumed = make(tmp_path / "a", slots=slots)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "run" / "checkpoint-2"))
    assert ELSEWHERE not in caplog.text
    make(tmp_path / "b", slots=slots).train()
    assert f"Warming() {ELSEWHERE}" in caplog.text


def test_layers_that_are_built_for_each_trainer_are_not_of_another(tmp_path, caplog):
    slots = {"objective": ["kd", Connected()]}
    losses = []
    for name in ("a", "b"):
        trainer = make(tmp_path / name, slots=slots)
        trainer.train()
        losses.append([entry["connected"] for entry in trainer.state.log_history if "connected" in entry])
    assert losses[0] == losses[1]
    assert ELSEWHERE not in caplog.text
    both = [make(tmp_path / name, slots=slots) for name in ("c", "d")]  # the second has the first one's layers
    for trainer in both:
        trainer.train()
    assert f"Connected() {ELSEWHERE}" in caplog.text
