import pytest
import reference
import torch

from hfkd.items import image_items
from hfkd.objectives import KD, standardized

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
