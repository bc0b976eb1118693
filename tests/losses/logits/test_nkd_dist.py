"""NKD and DIST against their formulas, loss and gradient."""

import pytest
import reference
import torch
import torch.nn.functional as F

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import image_items
from hfkd.losses.logits import DIST, NKD, Standardized

N, C = 8, 6


def make(views=1):
    g = torch.Generator().manual_seed(3)
    v, z = 2 * torch.randn(2, views * N, C, generator=g, dtype=torch.float64)
    return v.requires_grad_(), z, torch.arange(N) % C


@pytest.mark.parametrize("T", [1.0, 2.0])
def test_nkd(T):
    v, z, y = make()
    value = NKD(gamma=1.2)(image_items(v, z, y), torch.full((N,), T, dtype=torch.float64))
    expected = torch.stack([reference.nkd(*row, T, gamma=1.2) for row in zip(z, v, y, strict=True)])
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad(x.sum(), v)[0] for x in (value, expected)]
    torch.testing.assert_close(*gradients)


def test_nkd_of_mixed_labels_is_the_mean_over_the_two_classes():
    v, z, y = make()
    t, other = torch.full((N,), 1.0), (y + 2) % C
    mixed = 0.3 * F.one_hot(y, C).double() + 0.7 * F.one_hot(other, C)
    first, second, both = (NKD()(image_items(v, z, labels), t) for labels in (y, other, mixed))
    torch.testing.assert_close(both, 0.3 * first + 0.7 * second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nkd_is_finite_for_any_logits(dtype):
    v, z, y = (1e4 * x.detach() if x.is_floating_point() else x for x in make())
    v = v.to(dtype).requires_grad_()
    value = NKD()(image_items(v, z.to(dtype), y), torch.ones(N))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(v.grad).all()


@pytest.mark.parametrize("views", [1, 2])
def test_dist(views):
    v, z, y = make(views)
    objective = DIST(beta=2.0, gamma=3.0)
    loss, parts = DistillationLoss(objective, 4.0, ce_weight=0, kd_weight=1)(image_items(v, z, y), N)
    expected = sum(reference.dist(a, b, 4.0, 2.0, 3.0) for a, b in zip(z.split(N), v.split(N), strict=True))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, v)[0] for x in (loss, expected)))
    assert parts["relations"] > 0


def test_each_norm_of_dist_is_held_for_itself_unlike_the_authors_code():
    """Which adds 1e-8 to their product: on confident logits at T = 1 other gradients, on mild ones the same."""

    def authors(a, b):
        a, b = (x - x.mean(0) for x in (a, b))
        return (1 - (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0) + 1e-8)).mean()

    torch.manual_seed(0)
    z, v = torch.randn(2, 64, 100, dtype=torch.float64)
    apart = []
    for scale in (1.0, 20.0):
        student, teacher = (scale * v).requires_grad_(), scale * z
        items = image_items(student, teacher, torch.zeros(64, dtype=torch.long))
        ours = DIST(beta=0.0).relations(items, torch.ones(64)).mean()
        theirs = authors(student.softmax(-1), teacher.softmax(-1))
        mine, other = (torch.autograd.grad(loss, student)[0] for loss in (ours, theirs))
        apart.append(((mine - other).norm() / mine.norm()).item())
    assert apart[0] < 1e-3
    assert 0.1 < apart[1] < 0.44


def test_the_relations_belong_to_no_item_so_weights_leave_them():
    v, z, y = make()
    items = image_items(v, z, y)
    weight = lambda items: torch.arange(1.0, N + 1, dtype=torch.float64)  # noqa: E731
    loss, _ = DistillationLoss("dist", 4.0, weight, ce_weight=0, kd_weight=1)(items)
    t = torch.full((N,), 4.0, dtype=torch.float64)
    expected = (weight(items) * DIST()(items, t)).mean() + DIST().relations(items, t).mean()
    torch.testing.assert_close(loss, expected)


def test_what_wraps_an_objective_keeps_what_it_says_of_itself():
    for name, relational, divergence in (("dist", True, True), ("nkd", False, False), ("kd", False, True)):
        wrapped = Standardized(name)
        assert (wrapped.requirements().relations, wrapped.divergence) == (relational, divergence)


@pytest.mark.parametrize(
    ("build", "message"), [(lambda: NKD(gamma=-1), "gamma=-1"), (lambda: DIST(beta=-1), "beta=-1")]
)
def test_negative_values_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
