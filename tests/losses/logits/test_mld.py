"""MLD against loops over temperatures, images and classes: loss and gradient, one and two views, both variants."""

import pytest
import reference
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import image_items
from hfkd.losses.logits import MLD, Standardized
from hfkd.losses.temperatures import Energy
from hfkd.losses.weightings import Entropy

B, C = 6, 7
OTHERS = (3.0, 5.0, 2.0, 6.0)


def make(views, seed=0):
    g = torch.Generator().manual_seed(seed)
    v, z = 3 * torch.randn(2, views * B, C, generator=g, dtype=torch.float64)
    return v.requires_grad_(), z, torch.arange(B) % C


def split(x, views):
    return (x[:B], x[B:]) if views == 2 else (x, None)


def compare(loss, views, naive, progress=0.0):
    """The objective's part of `loss` (kd_weight 1, no cross-entropy) and its gradient against `naive(z, v)`."""
    v, z, y = make(views)
    value, _ = loss(image_items(v, z, y, progress=progress), B)
    (gradient,) = torch.autograd.grad(value, v)
    expected = naive(z, v)
    (expected_gradient,) = torch.autograd.grad(expected, v)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-9)


def mld(z, v, views, variant, temperatures, **weights):
    (zw, zs), (vw, vs) = split(z, views), split(v, views)
    return reference.mld(zw, vw, temperatures, zs, vs, variant, **weights)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("T0", [4.0, 2.0])
def test_the_loss_as_published(variant, views, T0):
    loss = DistillationLoss(MLD(variant=variant), T0, ce_weight=0, kd_weight=1)
    compare(loss, views, lambda z, v: mld(z, v, views, variant, [[T] * B for T in (T0, *OTHERS)]))


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("views", [1, 2])
def test_ea_mld_weighs_each_views_instances_and_leaves_the_relations(variant, views):
    loss = DistillationLoss(MLD(variant=variant), 4.0, "entropy", ce_weight=0, kd_weight=1)

    def naive(z, v):
        w = [reference.ea_weight(a, b) for a, b in zip(z, v.detach(), strict=True)]
        return mld(z, v, views, variant, [[T] * B for T in (4.0, *OTHERS)], ww=w[:B], ws=w[B:])

    compare(loss, views, naive)


def test_ea_mld_with_standardised_logits():
    """The instance terms see standardised logits; relations and weights the raw ones."""
    loss = DistillationLoss(Standardized(MLD(variant="released")), 2.0, "entropy", ce_weight=0, kd_weight=4)

    def naive(z, v):
        w = [reference.ea_weight(a, b) for a, b in zip(z, v.detach(), strict=True)]
        y, u = ((x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-7) for x in (z, v))
        Ts = [[T] * B for T in (2.0, *OTHERS)]
        instance = mld(y, u, 1, "released", Ts, ww=w)
        for T in Ts:  # the same relations twice, of the standardised logits taken out and of the raw ones put in
            for inputs, sign in (((y, u), -1), ((z, v), 1)):
                instance = instance + sign * 0.5 * sum(reference.mld_batch(*inputs, T)) / B
                instance = instance + sign * 0.5 * sum(reference.mld_class(*inputs, T)) / C
        return 4 * instance

    compare(loss, 1, naive)


@pytest.mark.parametrize("views", [1, 2])
def test_energy_multi_shifts_every_temperature_of_an_item(views):
    _, z, _ = make(views)
    energies = sorted(reference.energy(row, 4.0) for row in z)
    low, high = (energies[1] + energies[2]) / 2, (energies[-2] + energies[-3]) / 2
    energy = Energy(thresholds=(low, high))
    loss = DistillationLoss(MLD(variant="released", centre=4.0), energy, ce_weight=0, kd_weight=1)
    T0 = [reference.energy_temperature(reference.energy(row, 4.0), low, high) for row in z]
    assert set(T0) == {2.0, 4.0, 6.0}

    def naive(z, v):
        """View by view, since each view of an image has its own temperatures."""
        total = 0.0
        for view in range(views):
            rows = slice(view * B, (view + 1) * B)
            Ts = [T0[rows], *([max(T + t - 4, 1.0) for t in T0[rows]] for T in OTHERS)]
            for n in range(B):
                values = reference.mld_instance(z[rows][n], v[rows][n], [T[n] for T in Ts])
                if view:
                    total = total + sum(values[:-2]) / B
                else:
                    total = total + (0.5 * sum(values) + (sum(values[-2:]) if views == 2 else 0)) / B
            if not view:
                for T in Ts:
                    total = total + 0.5 * sum(reference.mld_batch(z[rows], v[rows], T)) / B
                    total = total + 0.5 * sum(reference.mld_class(z[rows], v[rows], T)) / C
        return total

    compare(loss, views, naive)


def test_without_a_centre_only_the_items_own_temperature_moves():
    v, z, y = make(1)
    t = torch.linspace(2, 6, B, dtype=torch.float64)
    Ts = [t.tolist(), *([T] * B for T in OTHERS)]
    items = image_items(v, z, y)
    expected = sum(reference.mld_instance(z[0], v[0], [T[0] for T in Ts])) / 2
    torch.testing.assert_close(MLD(variant="released")(items, t)[0], expected)


class Kernels(TorchDispatchMode):
    """Counts what is computed: views and bookkeeping launch no kernel."""

    FREE = (
        "view",
        "detach",
        "expand",
        "squeeze",
        "slice",
        "select",
        "transpose",
        "permute",
        "alias",
        "aten.t.",
        "empty",
    )

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not any(name in str(function) for name in self.FREE)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_fused_at_most_100_kernels(variant):
    """The public code runs 636, forward and backward, with two synchronisations (there is no `item` or `nonzero`)."""
    v, z, y = make(2)
    items, t, objective = image_items(v, z, y), torch.full((2 * B,), 4.0), MLD(variant=variant)
    with Kernels() as kernels:
        (objective(items, t).sum() + objective.relations(items, t).sum()).backward()
    assert kernels.count <= 100


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperatures": (3.0,)}, "two or more"),
        ({"temperatures": (3.0, -1.0)}, "from 0.001 to 10000"),
        ({"variant": "both"}, "'paper' or 'released'"),
        ({"centre": 0}, "from 0.001 to 10000"),
    ],
)
def test_bad_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MLD(**wrong)


def test_a_weighting_of_one_is_no_weighting():
    v, z, y = make(2)
    items = image_items(v, z, y)
    ones = DistillationLoss("mld", weighting=lambda items: torch.ones(len(items)))(items)[0]
    torch.testing.assert_close(ones, DistillationLoss("mld")(items)[0])
    assert Entropy()(items).shape == (2 * B,)
