"""CutMix and MixUp against loops over pixels, and against torchvision's boxes."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from hfkd.data.mixing import box, cutmix, mix_images, mixup


def images(b=6, height=8, width=5, views=()):
    return torch.rand(b, *views, 3, height, width)


def generators(n, seed=0):
    return [np.random.default_rng((seed, i)) for i in range(n)]


def naive_cutmix(image, partner, top, bottom, left, right):
    mixed, kept = image.clone(), 0
    for y in range(image.shape[-2]):
        for x in range(image.shape[-1]):
            if top <= y < bottom and left <= x < right:
                mixed[..., y, x] = partner[..., y, x]
            else:
                kept += 1
    return mixed, kept / (image.shape[-2] * image.shape[-1])


@pytest.mark.parametrize("views", [(), (2,)])
def test_cutmix_pastes_the_box_and_the_share_is_the_area_that_is_left(views):
    one, two = images(views=views), images(views=views)
    boxes = torch.tensor([[0, 8, 0, 5], [0, 0, 0, 0], [2, 5, 1, 4], [7, 8, 4, 5], [0, 3, 0, 2], [1, 8, 3, 5]])
    mixed, share = cutmix(one, two, boxes)
    for b, corners in enumerate(boxes.tolist()):
        expected, kept = naive_cutmix(one[b], two[b], *corners)
        assert torch.equal(mixed[b], expected)
        assert share[b].item() == pytest.approx(kept, abs=1e-7)
    assert share[:2].tolist() == [0, 1]


def test_mixup_is_the_formula():
    one, two = images(), images()
    shares = torch.rand(6)
    for b in range(6):
        torch.testing.assert_close(mixup(one, two, shares)[b], shares[b] * one[b] + (1 - shares[b]) * two[b])


def test_the_box_is_of_the_drawn_area_where_the_edge_does_not_cut_it():
    assert box(0.75, 16, 16, 32, 32) == (8, 24, 8, 24)  # sqrt(0.25) · 32 = 16 pixels
    assert box(0.75, 0, 31, 32, 32) == (0, 8, 23, 32)
    assert box(1.0, 3, 3, 32, 32) == (3, 3, 3, 3)
    assert box(0.0, 16, 16, 32, 32) == (0, 32, 0, 32)


def test_boxes_are_torchvisions_up_to_its_rounding_of_odd_sides():
    reference = v2.CutMix(num_classes=2)
    example = [tv_tensors.Image(torch.rand(2, 3, 32, 32))]
    for seed in range(30):
        torch.manual_seed(seed)
        parameters = reference.make_params(example)
        torch.manual_seed(seed)
        share = float(reference._dist.sample(()))
        column, row = int(torch.randint(32, (1,))), int(torch.randint(32, (1,)))
        top, bottom, left, right = box(share, row, column, 32, 32)
        theirs = parameters["box"]  # (x1, y1, x2, y2)
        assert max(abs(a - b) for a, b in zip((left, top, right, bottom), theirs, strict=True)) <= 1


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_each_row_follows_its_own_generator(mix):
    one, two = images(), images()
    mixed, share = mix_images(mix, one, two, generators(6))
    assert len(set(share.tolist())) > 3
    for b in (4, 1):
        alone, its_share = mix_images(mix, one[b : b + 1], two[b : b + 1], generators(6)[b : b + 1])
        assert torch.equal(alone[0], mixed[b])
        assert its_share[0] == share[b]


@pytest.mark.parametrize(("mix", "variance"), [("cutmix", 1 / 12), ("mixup", 0.25 / 1.4)])
def test_lambda_is_beta_distributed(mix, variance):
    """Beta(a, a) has variance 1 / (4 (2 a + 1)); CutMix's box is cut off at the edge, so its share is larger."""
    one = images(4000, 32, 32)[:, :1]
    _, share = mix_images(mix, one, one, generators(4000))
    if mix == "mixup":
        assert share.mean().item() == pytest.approx(0.5, abs=0.03)
        assert share.var().item() == pytest.approx(variance, abs=0.01)
    else:
        assert 0.6 < share.mean().item() < 0.75
