"""Teachers that derive from `FrozenTeacher`, or combine several networks in a way of their own."""

import pytest
import torch
from torch import nn
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.models import InputSpec
from hfkd.teachers import FrozenTeacher, TeacherEnsemble
from hfkd.teachers.fingerprint import teacher_key

AS_IS = InputSpec((0.0,) * 3, (1.0,) * 3, None)


class Doubled(FrozenTeacher):
    """Twice the network's logits."""

    def forward(self, **inputs):
        return 2 * super().forward(**inputs)


class Largest(TeacherEnsemble):
    """The largest logit of all teachers in place of the mean."""

    def forward(self, **inputs):
        return super().forward(**(inputs | {"each": True})).amax(0)


class TwiceInside(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixel_values):
        return 2 * self.network(pixel_values)


class Weighted(nn.Module):
    """A mean of one's own, of teachers that say how their inputs are normalised."""

    def __init__(self, *teachers):
        super().__init__()
        self.teachers = nn.ModuleList(teachers)

    def forward(self, pixel_values):
        first, second = (one(pixel_values=pixel_values) for one in self.teachers)
        return 0.75 * first + 0.25 * second


def kd_of(given, folder):
    args = arguments(folder, max_steps=1)
    trainer = DistillationTrainer(Net(), given, args, train_dataset=Rows())
    trainer.train()
    return trainer.state.log_history[0]["kd"]


@pytest.mark.parametrize("received", [None, AS_IS])
def test_what_a_subclass_computes_is_what_is_taught(tmp_path, received):
    given = Doubled(teacher(), received, received)
    wanted = kd_of(TwiceInside(teacher()), tmp_path / "inside")
    assert kd_of(given, tmp_path / "subclass") == pytest.approx(wanted, rel=1e-5)
    assert wanted != pytest.approx(kd_of(teacher(), tmp_path / "plain"), rel=1e-2)
    assert given.received == received, "the caller's stays as it is"


def test_a_subclass_has_a_key_of_its_own():
    """By which scans of the training set are stored."""
    assert teacher_key(Doubled(teacher())) != teacher_key(FrozenTeacher(teacher()))


def test_own_combinations_of_teachers_are_refused_and_may_be_a_module(tmp_path):
    parts = [FrozenTeacher(teacher()), FrozenTeacher(Net(seed=3))]
    for given in (Largest(parts), [Doubled(teacher()), Net(seed=3)]):
        with pytest.raises(ValueError, match="computes itself would have no effect: pass one nn.Module that runs"):
            DistillationTrainer(Net(), given, arguments(tmp_path / "refused"), train_dataset=Rows())
    seen = []
    weighted = Weighted(
        *(FrozenTeacher(net, AS_IS, InputSpec((0.1,) * 3, (0.5,) * 3, None)) for net in (teacher(), Net()))
    )
    weighted.teachers[0].model.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    kd_of(weighted, tmp_path / "weighted")
    rows = torch.stack([row["pixel_values"] for row in Rows()])
    assert all(((2 * rows - 0.2)[:, None] - x[None]).abs().amax((2, 3, 4)).amin(0).max() < 1e-5 for x in seen)
