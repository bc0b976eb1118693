"""Two bytes a logit: near enough for a network's own logits, exact for masks, or NaN that says neither."""

import pytest
import torch

from hfkd.teachers.image_cache.quantize import decode, encode, masked_classes

LOWEST = torch.finfo(torch.float32).min


def back(logits):
    return decode(*encode(logits))


@pytest.mark.parametrize("mask", [-300.0, -1e4, -1e6, -1e9, LOWEST])
@pytest.mark.parametrize("count", [1, 7])
def test_masked_classes_come_back_as_they_were_and_the_others_as_near_as_stated(mask, count):
    logits = 5 * torch.randn(50, 100)
    masked = torch.rand(50, 100).argsort(1) < count
    got = back(logits.masked_fill(masked, mask))
    assert (got[masked] == mask).all()
    kept = (got - logits).masked_fill(masked, 0).abs()
    spread = logits.masked_fill(masked, torch.inf).amin(1).neg() + logits.masked_fill(masked, -torch.inf).amax(1)
    assert (kept.amax(1) <= spread / 32767 + 2e-6).all()


@pytest.mark.parametrize("t", [0.5, 4.0, 1e3, 1e4])
def test_masks_that_were_added_to_logits_keep_every_temperatures_probabilities(t):
    """-1e4 + z differs from class to class, and at T = 1e4 such a class is as good as any."""
    logits = 5 * torch.randn(50, 100)
    logits[:, ::3] -= 1e4
    expected, got = (z.double().div(t).softmax(1) for z in (logits, back(logits)))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-9)


def test_rows_without_a_mask_are_as_they_were():
    """A confident row's one large logit is no reason to take the others for masked."""
    logits = torch.randn(20, 10)
    logits[:, 3] += 200
    assert not masked_classes(logits).any()
    levels, scale = encode(logits)
    assert torch.equal(scale[:, :2], scale[:, 2:])
    assert levels.amin() == -32767
    assert (back(logits) - logits).abs().max() < 250 / 65534


@pytest.mark.parametrize(
    "row",
    [
        [0.0, 1.0, float("nan")],
        [0.0, 1.0, float("inf")],
        [0.0, 1.0, -float("inf")],
        [-3e4, 0.0, 2e4],  # a range that is nobody's mask
        [0.0, -1e4, -1e9],  # two masks
    ],
)
def test_what_the_levels_cannot_tell_has_no_scale(row):
    levels, scale = encode(torch.tensor([row, [0.0, 1.0, 2.0]]))
    assert scale[0].isnan().all()
    assert scale[1].isfinite().all()
    assert levels[0].abs().max() <= 32767
