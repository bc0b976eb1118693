import torch
import torch.nn.functional as F
from feature_toys import as_published, leaf, oracle, random_pair, same_value_and_gradient

from hfkd.losses.features.nst import nst


def naive(student, teacher):
    """With the kernel (a . b)²: mean k(t, t') + mean k(s, s') - 2 mean k(s, t), channels as unit vectors."""

    def patterns(image):
        return [channel.flatten() / channel.flatten().norm() for channel in image]

    def mean_kernel(a, b):
        return sum((x @ y) ** 2 for x in a for y in b) / (len(a) * len(b))

    rows = []
    for s, t in zip(map(patterns, student), map(patterns, teacher), strict=True):
        rows.append(mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t))
    return torch.stack(rows)


def test_the_paper_image_by_image():
    s, t = random_pair((3, 4, 4, 4), (3, 2, 4, 4))
    same_value_and_gradient(nst(s, t), naive(s, t), s)


def test_the_larger_map_is_pooled():
    s, t = random_pair((3, 4, 6, 6), (3, 2, 3, 3))
    same_value_and_gradient(nst(s, t), naive(F.avg_pool2d(s, 2), t), s)
    same_value_and_gradient(nst(t.requires_grad_(), s), naive(t, F.avg_pool2d(s, 2)), t)


def test_published_numbers():
    z = oracle("features/nst")
    for case in ("stages", "sizes_differ"):
        maps = [leaf(z[f"{case}.student{k}"]) for k in (1, 2, 3)]
        values = [nst(s, z[f"{case}.teacher{k}"]) for k, s in enumerate(maps, 1)]
        gradients = {f"student{k}": (s, z[f"{case}.grad_student{k}"]) for k, s in enumerate(maps, 1)}
        as_published(sum(values), z[f"{case}.loss"], **gradients)
        torch.testing.assert_close(50 * z[f"{case}.loss"], z[f"{case}.loss_times_weight"])
        if case == "stages":
            torch.testing.assert_close(torch.stack([value.mean() for value in values]), z["stages.single_stage"])


def test_a_channel_without_a_pattern_has_no_gradient_of_its_own():
    s, t = random_pair((2, 3, 2, 2), (2, 3, 2, 2))
    dead = leaf(s.detach() * torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1))
    nst(dead, t).sum().backward()
    assert dead.grad.isfinite().all()
    assert dead.grad.abs().max() < 1e3
