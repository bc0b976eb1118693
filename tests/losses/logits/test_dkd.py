import pytest
import reference
import torch
import torch.nn.functional as F

from hfkd.losses.items import image_items
from hfkd.losses.logits import DKD, KD, OBJECTIVES, Average, Standardized
from hfkd.losses.logits.dkd import tckd_nckd
from hfkd.utils.slots import resolve

Z, V = (5 * torch.randn(2, 24, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).unbind()
Y = torch.arange(24) % 10
T = torch.tensor([2.0, 4.0, 6.0], dtype=torch.float64).repeat(8)


ONE, OTHER, THIRD = (F.one_hot((Y + k) % 10, 10).double() for k in (0, 3, 7))
SPREAD = {  # what timm's Mixup(label_smoothing=0.1) makes; a mix of three; smoothing alone
    "smoothed MixUp": 0.9 * (0.7 * ONE + 0.3 * OTHER) + 0.01,
    "three images": 0.5 * ONE + 0.3 * OTHER + 0.2 * THIRD,
    "smoothing": 0.8 * ONE + 0.02,
}


def items(v=V, z=Z, y=Y, progress=100.0):
    return image_items(v, z, y, progress=progress)


@pytest.mark.parametrize(("progress", "epoch"), [(0.0, 1), (0.99, 1), (1.0, 2), (18.5, 19), (19.0, 20), (50.0, 51)])
def test_matches_the_paper_with_the_released_ramp(progress, epoch):
    expected = reference.rows(
        lambda z, v, y, t: reference.dkd(z, v, int(y), float(t), beta=6.0, epoch=epoch), Z, V, Y, T
    )
    torch.testing.assert_close(DKD(beta=6.0)(items(progress=progress), T), expected)


def test_no_ramp_when_switched_off():
    assert torch.equal(DKD(warmup_epochs=0)(items(progress=0.0), T), DKD()(items(progress=30.0), T))


def test_kd_is_tckd_plus_nckd_times_what_is_left_of_the_target():
    target, others = tckd_nckd(items(), T, Y)
    p_y = torch.softmax(Z / T[:, None], -1).gather(-1, Y[:, None]).squeeze(-1)
    torch.testing.assert_close(KD(scale="none")(items(), T), target + (1 - p_y) * others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [60.0, 1e4])
def test_finite_with_finite_gradients_where_the_released_code_gives_inf(dtype, scale):
    z = (scale * torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.5]])).to(dtype)
    v = (scale * torch.tensor([[-1.0, 1.0, 0.0], [1.0, -1.0, 0.2]])).to(dtype).requires_grad_()
    value = DKD()(items(v, z, torch.tensor([0, 1])), torch.tensor([1.0, 1.0]))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(v.grad).all()


def test_two_classes_leave_only_the_target_term():
    two = items(V[:, :2], Z[:, :2], Y % 2)
    torch.testing.assert_close(DKD(beta=8.0)(two, T), KD()(two, T))


def test_mixed_labels_are_the_mean_over_their_two_classes_and_no_label_is_nothing():
    other = (Y + 3) % Z.shape[1]
    share = torch.linspace(0, 1, len(Y), dtype=torch.float64)
    mixed = share[:, None] * F.one_hot(Y, 10) + (1 - share)[:, None] * F.one_hot(other, 10)
    expected = share * DKD()(items(y=Y), T) + (1 - share) * DKD()(items(y=other), T)
    torch.testing.assert_close(DKD()(items(y=mixed), T), expected)
    torch.testing.assert_close(DKD()(items(y=0 * mixed), T), torch.zeros_like(expected))


def test_labels_of_two_classes_are_the_mean_of_both_bit_for_bit():
    share = torch.linspace(0.1, 0.9, len(Y), dtype=torch.float64)
    mixed = share[:, None] * F.one_hot(Y, 10) + (1 - share)[:, None] * F.one_hot((Y + 3) % 10, 10)
    shares, classes = mixed.topk(2)
    v = V.clone().requires_grad_()
    value = DKD()(items(v, y=mixed), T)
    expected = sum(shares[:, k] * DKD()(items(v, y=classes[:, k]), T) for k in (0, 1))
    assert torch.equal(value, expected)
    assert torch.equal(*(torch.autograd.grad(x.sum(), v)[0] for x in (value, expected)))


@pytest.mark.parametrize("mixed", SPREAD)
@pytest.mark.parametrize("wrap", [lambda x: x, Average, Standardized], ids=["itself", "average", "standardized"])
@pytest.mark.parametrize("name", ["dkd(beta=6.0, warmup_epochs=0)", "nkd(gamma=1.2)"])
def test_every_class_of_a_label_counts(mixed, wrap, name):
    """MixUp with smoothing, three images in one, smoothing alone: against the papers' formulas, class by class."""
    labels, v = SPREAD[mixed], V.clone().requires_grad_()
    value = wrap(resolve(name, OBJECTIVES, "objective"))(items(v, y=labels), T)
    z, u = (reference_logits(x, wrap) for x in (Z, V))
    dkd = lambda z, v, c, t: reference.dkd(z, v, c, t, beta=6.0, warmup=0)  # noqa: E731
    nkd = lambda z, v, c, t: float(reference.nkd(z, v, c, t, gamma=1.2))  # noqa: E731
    of_target = dkd if name.startswith("dkd") else nkd
    expected = reference.rows(
        lambda z, v, label, t: reference.over_classes(label, lambda c: of_target(z, v, c, float(t))), z, u, labels, T
    )
    torch.testing.assert_close(value, expected)
    each = [wrap(resolve(name, OBJECTIVES, "objective"))(items(v, y=torch.full_like(Y, c)), T) for c in range(10)]
    whole = (labels * torch.stack(each, -1)).sum()
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), v)[0] for x in (value, whole)))


def reference_logits(x, wrap):
    return torch.tensor([reference.standardize(row) for row in x.tolist()]).double() if wrap is Standardized else x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [5.0, 60.0, 1e4])
@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_smoothed_labels_are_finite_for_any_logits(name, scale, dtype):
    z, v = ((scale / 5 * x).to(dtype) for x in (Z, V))
    z[0] = v[1] = 0  # all classes alike
    v = v.requires_grad_()
    value = resolve(name, OBJECTIVES, "objective")(items(v, z, SPREAD["smoothed MixUp"].float()), T.float())
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(v.grad).all()
    if dtype == torch.float32:
        exact = resolve(name, OBJECTIVES, "objective")(items(v.double(), z.double(), SPREAD["smoothed MixUp"]), T)
        torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-3)


def test_ten_thousand_classes_take_a_few_times_the_memory_of_the_logits():
    """Not [N, C, C]: that would be 3.2 GB here."""
    z, v = torch.randn(2, 8, 10_000).unbind()
    labels = F.one_hot(torch.arange(8), 10_000) * 0.9 + 1e-5
    with torch.profiler.profile(profile_memory=True) as profile:
        DKD()(items(v, z, labels), torch.ones(8))
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest <= 60 * z.nbytes


@pytest.mark.parametrize("name", ["alpha", "beta", "warmup_epochs"])
def test_negative_values_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=-1"):
        DKD(**{name: -1})
