from itertools import product

import pytest
import reference
import torch
import torch.nn.functional as F
from objectives_by_level import ON_LOGITS
from torch import nn

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import image_items
from hfkd.losses.logits import OBJECTIVES
from hfkd.losses.temperatures import TEMPERATURES, Energy, Fitted, resolve_temperature
from hfkd.losses.weightings import WEIGHTINGS

N, C = 12, 10


def make(dtype=torch.float64, seed=5):
    g = torch.Generator().manual_seed(seed)
    z, v = (4 * torch.randn(2, N, C, generator=g, dtype=torch.float64)).to(dtype).unbind()
    return image_items(v.clone().requires_grad_(), z.clone().requires_grad_(), torch.arange(N) % C, progress=30.0)


def temperature(name):
    slot = resolve_temperature(name)
    if isinstance(slot, Fitted):
        slot.fit(torch.linspace(-20, -8, 100))
    return slot


ALL = list(product(ON_LOGITS, TEMPERATURES, WEIGHTINGS))


# ---- the contract: what every table entry promises --------------------------------------------------------------


@pytest.mark.parametrize("name", ON_LOGITS)
def test_an_objective_gives_one_number_an_item_zero_when_student_equals_teacher(name):
    items = make()
    objective = OBJECTIVES[name]()
    t = torch.full((N,), 4.0)
    same = image_items(items.teacher.logits, items.teacher.logits, items.labels)
    for part in (objective, objective.relations) if objective.requirements().relations else (objective,):
        assert part(items, t).shape == (N,)
        assert (part(items, t) >= 0).all()
        assert part(items, t).count_nonzero() >= N / 2  # MLD's mask leaves half of the items
        if objective.divergence:
            torch.testing.assert_close(part(same, t), torch.zeros(N, dtype=torch.float64))


@pytest.mark.parametrize("name", ON_LOGITS)
def test_an_objective_reads_each_items_own_temperature(name):
    items, objective = make(), OBJECTIVES[name]()
    t = torch.linspace(1, 6, N)
    together = objective(items, t)
    for n in range(N):
        torch.testing.assert_close(together[n], objective(items, torch.full((N,), t[n].item()))[n], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("objective", "t", "weighting"), ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_combination_is_finite_and_gives_the_teacher_no_gradient(objective, t, weighting, dtype):
    items = make(dtype)
    assert items.teacher.logits.requires_grad
    loss, parts = DistillationLoss(objective, temperature(t), weighting)(items)
    loss.backward()
    assert loss.shape == ()
    assert all(torch.isfinite(p) and not p.requires_grad for p in parts.values())
    assert torch.isfinite(items.student.logits.grad).all()
    assert items.teacher.logits.grad is None


@pytest.mark.parametrize(("objective", "t", "weighting"), ALL)
def test_every_combination_is_equivariant_under_permutation(objective, t, weighting):
    items, order = make(), torch.randperm(N)
    loss = DistillationLoss(objective, temperature(t), weighting)
    gradient = torch.autograd.grad(loss(items)[0], items.student.logits)[0]
    shuffled = image_items(items.student.logits[order], items.teacher.logits[order], items.labels[order], progress=30.0)
    gradient_shuffled = torch.autograd.grad(loss(shuffled)[0], items.student.logits)[0]
    torch.testing.assert_close(gradient, gradient_shuffled)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_carry_no_gradient(name):
    items = make()
    seen = []

    def spy(inner):
        def weigh(items):
            seen.append(torch.is_grad_enabled())
            return inner(items)

        return weigh

    DistillationLoss(weighting=spy(WEIGHTINGS[name]()))(items)
    assert seen == [False]


# ---- the equation -----------------------------------------------------------------------------------------------


def test_the_one_equation_against_the_papers_energy_kd_with_ea_weights():
    items = make()
    z, v, y = items.teacher.logits.detach(), items.student.logits.detach(), items.labels
    loss, parts = DistillationLoss("kd", Energy(thresholds=(-12.0, -10.0)), "entropy", 0.3, 0.7)(items)
    t = [reference.energy_temperature(reference.energy(r, 4.0), -12.0, -10.0) for r in z]
    assert set(t) == {2.0, 4.0, 6.0}
    kd = torch.tensor(
        [reference.kd(a, b, None, s) * reference.ea_weight(a, b) for a, b, s in zip(z, v, t, strict=True)]
    )
    torch.testing.assert_close(loss.item(), (0.3 * F.cross_entropy(v, y) + 0.7 * kd.mean()).item())
    torch.testing.assert_close(parts["kd"].item(), kd.mean().item())
    assert parts["temperature"].item() == pytest.approx(sum(t) / N)


def test_num_items_is_the_divisor():
    items = make()
    loss = DistillationLoss()
    torch.testing.assert_close(loss(items, 2 * N)[0] * 2, loss(items)[0])
    torch.testing.assert_close(loss(items, torch.tensor(N))[0], loss(items)[0])


@pytest.mark.parametrize("ce_weight", [0.1, 0.0])
@pytest.mark.parametrize("objective", ["kd", "mld"])  # without and with relations
def test_the_reduction_is_the_written_sum_bit_for_bit(objective, ce_weight):
    items, count = make(torch.float32), torch.tensor(2 * N)
    loss = DistillationLoss(objective, temperature("energy"), "entropy", ce_weight, 0.9)
    values = loss.per_item(items, **loss.choose(items))
    expected = ce_weight * values["ce"].sum() / count + 0.9 * values["kd"].sum() / count
    if objective == "mld":
        expected = expected + 0.9 * values["relations"].sum() / count
    value, v = loss(items, count)[0], items.student.logits
    assert torch.equal(value, expected)
    assert torch.equal(torch.autograd.grad(value, v)[0], torch.autograd.grad(expected, v)[0])


def test_a_cross_entropy_of_weight_0_is_logged_and_has_no_backward():
    items, loss = make(), DistillationLoss(ce_weight=0.0)
    values = loss.per_item(items, **loss.choose(items))
    ce, kd = torch.autograd.grad(loss.reduce(values, items), [values["ce"], values["kd"]], allow_unused=True)
    assert ce is None
    assert kd.count_nonzero() == N
    torch.testing.assert_close(loss(items)[1]["ce"].double(), values["ce"].detach().mean())


def test_the_parts_are_means_over_the_items():
    items, loss = make(), DistillationLoss("mld", temperature("energy"), "entropy")
    chosen = loss.choose(items)
    values, parts = loss.per_item(items, **chosen) | chosen, loss(items)[1]
    assert parts.keys() == values.keys() | {"low_energy_share", "high_energy_share"}
    for name, value in values.items():
        torch.testing.assert_close(parts[name], value.detach().mean().float())
    torch.testing.assert_close(parts["low_energy_share"], (chosen["temperature"] == 6).float().mean())


def test_mixed_labels_are_a_convex_combination():
    items = make()
    a, b = items.labels, (items.labels + 3) % C
    mixed = 0.3 * F.one_hot(a, C).double() + 0.7 * F.one_hot(b, C).double()
    value = [DistillationLoss()(image_items(items.student.logits, items.teacher.logits, y))[0] for y in (a, b, mixed)]
    torch.testing.assert_close(value[2], 0.3 * value[0] + 0.7 * value[1])


def test_without_kd_the_teacher_does_not_matter():
    items = make()
    broken = image_items(items.student.logits, torch.full_like(items.teacher.logits, torch.nan), items.labels)
    loss = DistillationLoss(ce_weight=1.0, kd_weight=0)
    torch.testing.assert_close(loss(broken)[0], F.cross_entropy(items.student.logits, items.labels))


def test_a_module_in_a_slot_is_a_child_whose_parameters_train():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.t = nn.Parameter(torch.tensor(4.0))

        def forward(self, items):
            return self.t.expand(len(items))

    loss = DistillationLoss(temperature=Learned())
    loss(make())[0].backward()
    assert [name for name, _ in loss.named_parameters()] == ["temperature.t"]
    assert loss.temperature.t.grad != 0


def test_callables_of_the_right_signature_serve_as_slots():
    items = make()
    loss = DistillationLoss(
        objective=lambda items, t: (items.student.logits - items.teacher.logits).pow(2).mean(-1) * t,
        temperature=lambda items: torch.ones(len(items)),
        weighting=lambda items: 1 - items.teacher.logits.softmax(-1).amax(-1),
    )
    assert torch.isfinite(loss(items)[0])


@pytest.mark.parametrize(
    ("slot", "value"),
    [
        ("objective", lambda items, t: (items.student.logits - items.teacher.logits).pow(2).mean()),
        ("temperature", lambda items: torch.tensor(4.0)),
        ("weighting", lambda items: torch.ones(len(items), 1)),
    ],
)
def test_a_slot_that_reduces_is_refused(slot, value):
    with pytest.raises(ValueError, match="one number per item"):
        DistillationLoss(**{slot: value})(make())


@pytest.mark.parametrize("weights", [{"ce_weight": -1}, {"kd_weight": float("nan")}, {"ce_weight": 0, "kd_weight": 0}])
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match="ce_weight|kd_weight"):
        DistillationLoss(**weights)
