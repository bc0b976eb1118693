"""The loss around a network: directions of the filters' norms, surfaces that are known, parameters that stay."""

import math

import pytest
import torch
from torch import nn

from hfkd.evaluation.analysis.landscape import Landscape, filter_normalised, landscape
from hfkd.models import image_classifier


def two_logits(first, second):
    """A linear layer without bias of one input and two outputs."""
    layer = nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[first], [second]])
    return layer


def test_every_filter_of_a_direction_has_its_filters_norm_and_vectors_stay():
    network = image_classifier("cifar_resnet8", 10)
    direction = filter_normalised(network, 0)
    for weight, moved in zip(network.parameters(), direction, strict=True):
        if weight.ndim == 1:
            assert not moved.any()
        else:
            assert torch.allclose(weight.flatten(1).norm(dim=1), moved.flatten(1).norm(dim=1), rtol=1e-4)
    again, other = filter_normalised(network, 0), filter_normalised(network, 1)
    assert all(torch.equal(one, same) for one, same in zip(direction, again, strict=True))
    assert not torch.equal(direction[0], other[0])


def test_the_losses_are_those_of_the_moved_network():
    layer = two_logits(2.0, -1.0)
    start = layer.weight.detach().clone()
    d, e = [torch.tensor([[2.0], [0.0]])], [torch.tensor([[0.0], [-1.0]])]
    label = torch.tensor([0])

    def loss():
        return nn.functional.cross_entropy(layer(torch.ones(1, 1)), label).item()

    found = landscape(layer, loss, [d], points=3)
    assert found.coordinates.tolist() == [-1, 0, 1]
    # logits 2 + 2 a and -1: log(1 + exp(-1 - 2 - 2 a))
    assert found.losses.tolist() == pytest.approx([math.log1p(math.exp(-3 - 2 * a)) for a in (-1, 0, 1)])
    plane = landscape(layer, loss, [d, e], points=3, reach=0.5)
    for i, a in enumerate((-0.5, 0, 0.5)):
        for j, b in enumerate((-0.5, 0, 0.5)):
            assert plane.losses[i, j].item() == pytest.approx(math.log1p(math.exp(-3 - b - 2 * a)), rel=1e-5)
    assert torch.equal(layer.weight, start)


def test_the_parameters_are_put_back_whatever_happens():
    layer = two_logits(0.3, 0.1)
    start = layer.weight.detach().clone()

    def broken():
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        landscape(layer, broken, [filter_normalised(layer, 0)])
    assert torch.equal(layer.weight, start)


def test_variance_and_area_of_a_paraboloid():
    at = torch.tensor([-1.0, 0, 1])
    bowl = Landscape(at, at[:, None] ** 2 + at[None] ** 2)  # 0 in the middle, 1 at the sides, 2 in the corners
    assert bowl.area(1.6) == pytest.approx(5 / 9)
    assert (bowl.area(1.0), bowl.area(-1)) == (pytest.approx(5 / 9), 0)
    mean = 12 / 9
    assert bowl.variance == pytest.approx((mean**2 + 4 * (1 - mean) ** 2 + 4 * (2 - mean) ** 2) / 9)


def test_losses_that_are_not_finite_are_no_low_ones():
    surface = Landscape(torch.tensor([0.0, 1]), torch.tensor([1.0, torch.nan]))
    assert surface.area() == 0.5
    assert math.isnan(surface.variance)
