import pytest
import reference
import torch
import torch.nn.functional as F

from hfkd.items import image_items
from hfkd.objectives import DKD, KD
from hfkd.objectives.dkd import tckd_nckd

Z, V = (5 * torch.randn(2, 24, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).unbind()
Y = torch.arange(24) % 10
T = torch.tensor([2.0, 4.0, 6.0], dtype=torch.float64).repeat(8)


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


@pytest.mark.parametrize("name", ["alpha", "beta", "warmup_epochs"])
def test_negative_values_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=-1"):
        DKD(**{name: -1})
