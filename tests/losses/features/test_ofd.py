import math

import pytest
import torch
import torch.nn.functional as F
from feature_toys import as_published, leaf, oracle, random_pair, same_value_and_gradient
from torch import nn

from hfkd.losses.features.ofd import Connector, margins, ofd


def naive(student, teacher, margin):
    """Sum of d_p(target, y) over the map; 0 where y is below a target that is not positive."""
    rows = []
    for y, t in zip(student, teacher, strict=True):
        total = 0.0
        for c in range(len(y)):
            for a, b in zip(y[c].flatten(), t[c].flatten(), strict=True):
                target = max(b.item(), margin[c].item())
                if not (a.item() <= target <= 0):
                    total = total + (a - target) ** 2
        rows.append(total)
    return torch.stack(rows)


def norm(weight, bias):
    bn = nn.BatchNorm2d(len(weight)).double()
    bn.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    return bn


def test_the_paper_image_by_image():
    s, t = random_pair((3, 4, 3, 3), (3, 4, 3, 3))
    margin = torch.tensor([-0.1, -0.5, -1.0, -0.01], dtype=torch.float64)
    same_value_and_gradient(ofd(s, t, margin), naive(s, t, margin), s)


def test_the_teachers_map_gets_the_students_size():
    s, t = random_pair((2, 3, 2, 2), (2, 3, 4, 4))
    margin = torch.full((3,), -0.5, dtype=torch.float64)
    same_value_and_gradient(ofd(s, t, margin), naive(s, F.avg_pool2d(t, 2), margin), s)


@pytest.mark.parametrize(("weight", "bias"), [(1.0, 0.0), (-0.5, 0.3), (2.0, -1.0), (0.3, 1.2)])
def test_a_margin_is_the_mean_of_the_negative_half(weight, bias):
    bn = norm(torch.tensor([weight], dtype=torch.float64), torch.tensor([bias], dtype=torch.float64))
    x = bias + abs(weight) * torch.linspace(-9, 9, 180001, dtype=torch.float64)
    density = torch.exp(-(((x - bias) / weight) ** 2) / 2) * (x < 0)
    share = density.sum() / (abs(1 / 1e-4) * math.sqrt(2 * math.pi))
    expected = (x * density).sum() / density.sum() if share > 1e-3 else torch.tensor(-3 * abs(weight))
    torch.testing.assert_close(margins(bn)[0], expected.double(), rtol=1e-4, atol=1e-6)


def test_published_numbers():
    z = oracle("features/ofd")
    for case, stages in {"stages": 3, "sizes_differ": 2}.items():
        total, gradients = 0.0, {}
        for k in range(1, stages + 1):
            s, t = leaf(z[f"{case}.student{k}"]), z[f"{case}.teacher{k}"]
            margin = margins(norm(z[f"{case}.teacher_bn{k}.weight"], z[f"{case}.teacher_bn{k}.bias"]))
            torch.testing.assert_close(margin.float(), z[f"{case}.margin{k}"], rtol=1e-6, atol=1e-6)
            connector = Connector(s.shape[1], t.shape[1]).double()
            old, new = (
                f"{case}.connector{k - 1}.",
                {"conv.weight": "0.weight", "bn.weight": "1.weight", "bn.bias": "1.bias"},
            )
            connector.load_state_dict({mine: z[old + theirs] for theirs, mine in new.items()}, strict=False)
            total = total + ofd(connector(s), t, z[f"{case}.margin{k}"]) / 2 ** (stages - k)
            gradients[f"student{k}"] = (s, z[f"{case}.grad_student{k}"])
        as_published(total, z[f"{case}.loss"], **gradients)
        torch.testing.assert_close(1e-3 * z[f"{case}.loss"], z[f"{case}.loss_times_weight"])
