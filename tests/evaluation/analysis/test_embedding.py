"""t-SNE and the Calinski-Harabasz index on features whose answers are known."""

import math

import pytest
import torch

from hfkd.evaluation.analysis.embedding import embedding, separation


def test_the_index_of_four_points_on_a_line():
    # means 1 and 11, the mean of all 6: B = 4 * 25, W = 4 * 1; (100 / 1) / (4 / 2)
    points, labels = torch.tensor([[0.0], [2], [10], [12]]), torch.tensor([0, 0, 1, 1])
    assert separation(points, labels) == pytest.approx(50)


def test_one_class_or_one_image_a_class_has_no_index():
    assert math.isnan(separation(torch.rand(4, 2), torch.zeros(4)))
    assert math.isnan(separation(torch.rand(4, 2), torch.arange(4)))


def test_classes_that_are_far_apart_stay_so_in_the_plane_and_a_seed_draws_the_same():
    labels = torch.arange(60) % 3
    noise = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    features = 50 * torch.nn.functional.one_hot(labels, 8) + noise
    found, again = embedding(features, labels, 40, seed=1), embedding(features, labels, 40, seed=1)
    assert found.points.shape == (40, 2)
    assert len(found.rows.unique()) == 40
    assert torch.equal(found.points, again.points)
    assert not torch.equal(found.rows, embedding(features, labels, 40, seed=2).rows)
    assert found.index_of_features == pytest.approx(separation(features, labels))
    nearest = torch.cdist(found.points, found.points).fill_diagonal_(torch.inf).argmin(1)
    assert torch.equal(labels[found.rows][nearest], labels[found.rows])
