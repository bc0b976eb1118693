"""What somebody builds on hfkd: a temperature that is fitted, a task, a teacher, a trainer. Mistakes are named."""

import pytest
import torch
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationLoss, DistillationTrainer
from hfkd.losses.temperatures import Fitted


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
