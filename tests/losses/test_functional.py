import math

import pytest
import reference
import torch

from hfkd.losses.functional import energy, entropy


@pytest.mark.parametrize("t", [1.0, 3.0, 4.0])
def test_match_the_papers_formulas(t):
    z = 4 * torch.randn(16, 10, dtype=torch.float64)
    torch.testing.assert_close(energy(z, t), torch.tensor([reference.energy(r, t) for r in z], dtype=torch.float64))
    torch.testing.assert_close(entropy(z, t), torch.tensor([reference.entropy(r, t) for r in z], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_finite_and_float32_at_extreme_logits(dtype, scale):
    z = (scale * torch.tensor([[1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]])).to(dtype)
    for signal in (energy, entropy):
        value = signal(z)
        assert value.dtype == torch.float32
        assert value.shape == (2,)
        assert torch.isfinite(value).all()


def test_confident_means_low_energy_and_low_entropy():
    confident, uncertain = torch.tensor([[20.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.9, 0.8]])
    assert energy(confident) < energy(uncertain)
    assert entropy(confident) < entropy(uncertain)


def test_entropy_of_uniform_is_log_c_and_of_certain_is_0():
    assert entropy(torch.zeros(1, 100)).item() == pytest.approx(math.log(100), abs=1e-6)
    assert entropy(torch.tensor([[1e4, 0.0, 0.0]])).item() == 0


def test_energy_shifts_with_the_logits_and_entropy_does_not():
    z = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(energy(z + 3), energy(z) - 3)
    torch.testing.assert_close(entropy(z + 3), entropy(z))


def test_a_masked_class_adds_nothing_to_entropy_and_energy():
    """0 log 0 = 0, however the mask is written."""
    z = torch.randn(5, 9)
    for mask in (-1e9, torch.finfo(torch.float32).min, -float("inf")):
        masked = torch.cat([z, torch.full((5, 3), mask)], 1)
        for t in (0.5, 3.0):
            torch.testing.assert_close(entropy(masked, t), entropy(z, t))
            torch.testing.assert_close(energy(masked, t), energy(z, t))
