import pytest
import reference
import torch
from objectives_by_level import ON_LOGITS

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import image_items
from hfkd.losses.logits import (
    JSD,
    KD,
    OBJECTIVES,
    AdaptiveKL,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    Standardized,
    TotalVariation,
    standardized,
)

Z, V = (5 * torch.randn(2, 24, 10, generator=torch.Generator().manual_seed(4), dtype=torch.float64)).unbind()
Y = torch.arange(24) % 10
T = torch.tensor([2.0, 4.0, 6.0], dtype=torch.float64).repeat(8)
ITEMS = image_items(V, Z, Y)


def test_kd_is_t_squared_kl_at_each_items_own_temperature():
    expected = reference.rows(lambda z, v, t: reference.kd(z, v, None, float(t)), Z, V, T)
    torch.testing.assert_close(KD()(ITEMS, T), expected)
    torch.testing.assert_close(KD(scale="none")(ITEMS, T), expected / T**2)


def test_the_gradient_of_kd_is_t_times_the_difference_of_the_softmaxes():
    v = V.clone().requires_grad_()
    KD()(image_items(v, Z, Y), T).sum().backward()
    expected = T[:, None] * (torch.softmax(V / T[:, None], -1) - torch.softmax(Z / T[:, None], -1))
    torch.testing.assert_close(v.grad, expected)


def test_standardized_is_the_objective_on_z_scores():
    expected = reference.rows(
        lambda z, v, t: reference.kd(reference.standardize(z), reference.standardize(v), None, float(t)), Z, V, T
    )
    torch.testing.assert_close(standardized(KD())(ITEMS, T), expected)


def test_standardized_does_not_see_shift_or_scale():
    moved = image_items(3 * V + 1, 0.5 * Z - 2, Y)
    torch.testing.assert_close(standardized("kd")(moved, T), standardized("kd")(ITEMS, T), rtol=1e-5, atol=1e-7)


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="scale='batch'"):
        KD(scale="batch")


# ---- the other divergences: (ours, the naive formula, its factor of T) ------------------------------------------

CASES = {
    "kd": (KD(), reference.kl_of, 2),
    "reverse_kl": (ReverseKL(), reference.reverse_kl, 2),
    "jsd": (JSD(), reference.jsd, 2),
    "jsd 0.1": (JSD(beta=0.1), lambda p, q: reference.jsd(p, q, 0.1), 2),
    "jsd 0": (JSD(beta=0), lambda p, q: reference.jsd(p, q, 0), 2),
    "jsd 1": (JSD(beta=1), lambda p, q: reference.jsd(p, q, 1), 2),
    "skew_kl": (SkewKL(), reference.skew_kl, 2),
    "skew_kl 0.7 without T²": (SkewKL(alpha=0.7, scale="none"), lambda p, q: reference.skew_kl(p, q, 0.7), 0),
    "skew_reverse_kl": (SkewReverseKL(), reference.skew_reverse_kl, 2),
    "skew_reverse_kl 0": (SkewReverseKL(alpha=0.0), lambda p, q: reference.skew_reverse_kl(p, q, 0.0), 2),
    "adaptive_kl": (AdaptiveKL(), reference.adaptive_kl, 2),
    "adaptive_kl 0.9": (AdaptiveKL(mu=0.9), lambda p, q: reference.adaptive_kl(p, q, 0.9), 2),
    "total_variation": (TotalVariation(), reference.total_variation, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_the_naive_formulas(case):
    objective, formula, power = CASES[case]
    v, w = V.clone().requires_grad_(), V.clone().requires_grad_()
    ours = objective(image_items(v, Z, Y), T)
    naive = [
        t**power * formula(torch.softmax(z / t, -1), torch.softmax(x / t, -1)) for z, x, t in zip(Z, w, T, strict=True)
    ]
    torch.testing.assert_close(ours, torch.stack(naive), rtol=1e-6, atol=1e-9)
    weights = torch.arange(1, len(T) + 1, dtype=torch.float64)
    (ours * weights).sum().backward()
    (torch.stack(naive) * weights).sum().backward()
    torch.testing.assert_close(v.grad, w.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ON_LOGITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_with_finite_gradients_and_not_negative_at_logits_of_1e4(name, dtype):
    z = (1e4 * torch.randn(8, 10)).to(dtype)
    v = (1e4 * torch.randn(8, 10)).to(dtype).requires_grad_()
    value = OBJECTIVES[name]()(image_items(v, z, Y[:8], progress=30.0), torch.ones(8))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(v.grad).all()
    assert (value >= -1e-5).all()


@pytest.mark.parametrize("name", [name for name in ON_LOGITS if OBJECTIVES[name].divergence])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_zero_with_gradient_zero_when_the_student_equals_the_teacher(name, scale):
    v = (scale * Z).float().requires_grad_()
    value = OBJECTIVES[name]()(image_items(v, v.detach(), Y, progress=30.0), T.float())
    value.sum().backward()
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-6 * T.max().item() ** 2)
    torch.testing.assert_close(v.grad, torch.zeros_like(v), rtol=0, atol=1e-5)


def test_the_ends_of_jsd_are_the_two_directions_of_kl():
    assert torch.equal(JSD(beta=0)(ITEMS, T), KD()(ITEMS, T))
    assert torch.equal(JSD(beta=1)(ITEMS, T), ReverseKL()(ITEMS, T))


def test_jsd_divided_by_beta_times_1_minus_beta_tends_to_its_ends():
    for beta, end in ((1e-7, KD()), (1 - 1e-7, ReverseKL())):
        torch.testing.assert_close(JSD(beta=beta)(ITEMS, T) / (beta * (1 - beta)), end(ITEMS, T), rtol=1e-3, atol=1e-6)


def test_a_teacher_of_equal_probabilities_is_all_head():
    flat = image_items(V, torch.zeros_like(V), Y)
    torch.testing.assert_close(AdaptiveKL()(flat, T), KD()(flat, T))


def test_the_class_that_crosses_the_mass_is_in_the_head():
    """As in DSKD's code; the authors' own counts it to the tail."""
    p, q = torch.tensor([0.4, 0.35, 0.25]), torch.tensor([0.2, 0.3, 0.5])
    items = image_items(q.log()[None], p.log()[None], torch.zeros(1, dtype=torch.long))
    forward, reverse = (p * (p / q).log()).sum(), (q * (q / p).log()).sum()
    share = (0.2 + 0.05) / (0.2 + 0.05 + 0.25)
    expected = share * forward + (1 - share) * reverse
    torch.testing.assert_close(AdaptiveKL(mu=0.5)(items, torch.ones(1)), expected[None])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: JSD(beta=1.5), r"JSD: beta=1.5 must be a number from 0 to 1"),
        (lambda: SkewKL(alpha=-0.1), r"SkewKL: alpha=-0.1"),
        (lambda: SkewReverseKL(alpha=1), r"SkewReverseKL: alpha=1 compares a network with itself"),
        (lambda: AdaptiveKL(mu="x"), r"AdaptiveKL: mu='x'"),
        (lambda: ReverseKL(scale="batch"), r"ReverseKL: scale='batch'"),
        (lambda: Standardized("fcfd"), r"'fcfd' reads inner layers, and only items' logits are standardised"),
        (lambda: DistillationLoss("kd + standardized(objective='cwd')"), "'cwd' reads inner layers"),
    ],
)
def test_bad_values_are_refused_when_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()
