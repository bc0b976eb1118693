"""CTKD's temperature against its formulas, one number at a time."""

import math

import pytest
import torch

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import image_items
from hfkd.losses.learned_temperature import Learned

N, C = 6, 5


def make(progress=0.0):
    g = torch.Generator().manual_seed(2)
    z, v = 3 * torch.randn(2, N, C, generator=g)
    return image_items(v, z, torch.arange(N) % C, progress=progress)


def test_the_first_temperature_is_that_of_the_paper():
    t = Learned()(make())
    assert t.shape == (N,)
    torch.testing.assert_close(t, torch.full((N,), 1 + 20 / (1 + math.exp(-1))))


@pytest.mark.parametrize(("epoch", "strength"), [(1, -0.0245), (5, -0.5), (10, -1.0), (40, -1.0)])
def test_the_gradient_is_reversed_ever_more(epoch, strength):
    learned, straight = Learned(), Learned()
    straight.reversal = lambda progress: 1.0
    for module in (learned, straight):
        DistillationLoss(temperature=module)(make(progress=epoch - 1 + 0.3))[0].backward()
    assert learned.reversal(epoch - 1) == pytest.approx(strength, abs=1e-3)
    torch.testing.assert_close(learned.theta.grad, straight.theta.grad * learned.reversal(epoch - 1))


def test_the_gradient_goes_through_t_squared():
    """d/dtheta of 0.9 mean T² KL(T), by finite differences, reversed."""
    learned = Learned(warmup_epochs=0).double()
    items = image_items(make().student.logits.double(), make().teacher.logits.double(), make().labels)
    loss = DistillationLoss(temperature=learned)
    loss(items)[0].backward()
    values = []
    for step in (1e-4, -1e-4):
        with torch.no_grad():
            learned.theta.fill_(1 + step)
            values.append(loss(items)[0])
    torch.testing.assert_close(learned.theta.grad, -(values[0] - values[1]) / 2e-4, rtol=1e-5, atol=1e-8)


def test_the_temperature_learns_to_make_distilling_harder():
    learned, items = Learned(warmup_epochs=0), make()
    loss = DistillationLoss(temperature=learned)
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.5)
    first = loss(items)[0]
    for _ in range(20):
        optimizer.zero_grad()
        loss(items)[0].backward()
        optimizer.step()
    assert loss(items)[0] > first
    assert 1 < learned(items)[0] < 21


def test_instance_wise_each_item_has_its_own_and_the_networks_get_no_gradient_from_it():
    learned, items = Learned(instance=True), make()
    student = items.student.logits.requires_grad_()
    t = learned(items)
    assert t.shape == (N,)
    assert len(set(t.tolist())) == N
    assert ((t > 1) & (t < 21)).all()
    t.sum().backward()
    assert student.grad is None
    assert all(p.grad is not None for p in learned.parameters())
    order = torch.randperm(N)
    shuffled = image_items(items.student.logits[order], items.teacher.logits[order], items.labels[order])
    torch.testing.assert_close(learned(shuffled), t[order])


@pytest.mark.parametrize("wrong", [{"start": 0}, {"span": -1.0}, {"warmup_epochs": -1}, {"width": 0}])
def test_bad_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Learned(**wrong)
