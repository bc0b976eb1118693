"""Every published combination of slots against its formula, loss and gradient, item by item.

The gradient of the naive loss is taken by central differences: its formulas are plain numbers.
"""

import pytest
import reference
import torch
import torch.nn.functional as F

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import image_items
from hfkd.losses.temperatures import Energy, Gradation

N, C = 5, 6
G = torch.Generator().manual_seed(11)
V, Z = 3 * torch.randn(2, N, C, generator=G, dtype=torch.float64)
Y = torch.tensor([0, 3, 2, 5, 3])
E = [reference.energy(z, 4.0) for z in Z]
LOW, HIGH = sorted(E)[1] - 1e-3, sorted(E)[-2] + 1e-3
EDGES = tuple(torch.linspace(min(E), max(E), 9).tolist())
LADDER = (2.0, 2.5, 3.0, 3.5, 4.0, 4.0, 4.5, 5.0, 5.5, 6.0)


def energy_t(E, **keywords):
    return reference.energy_temperature(E, LOW, HIGH, **keywords)


def kd(z, v, y, T):
    return reference.kd(z, v, y, T)


def dkd(z, v, y, T):
    return reference.dkd(z, v, int(y), T, beta=6.0, epoch=40)


def standardised(objective):
    return lambda z, v, y, T: objective(reference.standardize(z), reference.standardize(v), y, T)


def step(E):
    """Gradation: the lowest decile of energy gets the highest temperature."""
    return LADDER[::-1][sum(E >= edge for edge in EDGES)]


ONE_SIDED = {"thresholds": (LOW, HIGH), "decrease": 0.0}
COMBINATIONS = {
    "KD": (("kd", 4.0, "uniform"), kd, lambda E: 4.0, None),
    "EA-KD": (("kd", 4.0, "entropy"), kd, lambda E: 4.0, reference.ea_weight),
    "ER-KD": (
        ("kd", 4.0, "entropy(student=False, temperature=4.0)"),
        kd,
        lambda E: 4.0,
        lambda z, v: reference.entropy(z, 4),
    ),
    "EA-DKD": (("dkd(beta=6.0)", 4.0, "entropy"), dkd, lambda E: 4.0, reference.ea_weight),
    "KD+LS": (("standardized", 2.0, "uniform"), standardised(kd), lambda E: 2.0, None),
    "EA-DKD+LS": (
        ("standardized(objective='dkd(beta=6.0)')", 2.0, "entropy"),
        standardised(dkd),
        lambda E: 2.0,
        reference.ea_weight,
    ),
    "Energy KD": (("kd", Energy(thresholds=(LOW, HIGH)), "uniform"), kd, energy_t, None),
    "Energy DKD": (("dkd(beta=6.0)", Energy(thresholds=(LOW, HIGH)), "uniform"), dkd, energy_t, None),
    "one-sided": (("kd", Energy(**ONE_SIDED), "uniform"), kd, lambda E: energy_t(E, decrease=0.0), None),
    "gradation": (("kd", Gradation(thresholds=EDGES), "uniform"), kd, step, None),
    "Energy KD with EA-KD": (("kd", Energy(thresholds=(LOW, HIGH)), "entropy"), kd, energy_t, reference.ea_weight),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_published_combination(name):
    slots, objective, temperature, weight = COMBINATIONS[name]
    weights = [1.0 if weight is None else weight(z, v) for z, v in zip(Z, V, strict=True)]
    temperatures = [temperature(e) for e in E]

    def naive(v):
        rows = zip(Z, v, Y, temperatures, weights, strict=True)
        return 0.9 * sum(w * objective(z, u, y, T) for z, u, y, T, w in rows) / N + 0.1 * float(F.cross_entropy(v, Y))

    student = V.clone().requires_grad_()
    loss, _ = DistillationLoss(*slots)(image_items(student, Z, Y, progress=39.0))
    loss.backward()
    assert loss.item() == pytest.approx(naive(V), rel=1e-6)
    for n, c in ((0, 0), (1, 3), (2, 4), (4, 5)):
        nudge = torch.zeros_like(V)
        nudge[n, c] = 1e-5
        slope = (naive(V + nudge) - naive(V - nudge)) / 2e-5
        assert student.grad[n, c].item() == pytest.approx(slope, rel=1e-6, abs=1e-8)
