import pytest
import torch
import torch.nn.functional as F
from feature_toys import as_published, leaf, oracle, random_pair, same_value_and_gradient

from hfkd.losses.features.catkd import activation_maps, catkd


def naive(student, teacher, size, normalized):
    """Mean over classes and cells of the squared difference of the pooled (normalised) activation maps."""
    rows = []
    for s, t in zip(student, teacher, strict=True):
        total = 0.0
        for a, b in zip(F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size), strict=True):
            if normalized:
                a, b = a / a.square().sum().sqrt(), b / b.square().sum().sqrt()
            total = total + sum((x - y) ** 2 for x, y in zip(a.flatten(), b.flatten(), strict=True))
        rows.append(total / (len(s) * size**2))
    return torch.stack(rows)


@pytest.mark.parametrize("normalized", [False, True])
def test_the_paper_image_by_image(normalized):
    s, t = random_pair((3, 5, 4, 4), (3, 5, 8, 8))
    same_value_and_gradient(catkd(s, t, 2, normalized), naive(s, t, 2, normalized), s)


def test_the_mean_of_an_activation_map_is_the_logit_without_its_bias():
    features, _ = random_pair((3, 4, 5, 5), (1,))
    linear = torch.nn.Linear(4, 6).double()
    maps = activation_maps(features, linear.weight)
    torch.testing.assert_close(maps.mean((2, 3)) + linear.bias, linear(features.mean((2, 3))))


def test_published_numbers():
    z = oracle("features/catkd")
    for case in ("same", "teacher_larger"):
        for size in (2, 4):
            for normalized in (False, True):
                at = f"{case}.pool{size}" + ".normalised" * normalized
                s = leaf(z[f"{case}.student_cams"])
                values = catkd(s, z[f"{case}.teacher_cams"], size, normalized)
                as_published(values, z[f"{at}.loss"], student=(s, z[f"{at}.grad_student_cams"]))
