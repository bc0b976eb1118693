import torch
from feature_toys import as_published, leaf, oracle, random_pair, same_value_and_gradient

from hfkd.losses.features.rkd import rkd


def huber(x, y):
    return 0.5 * (x - y) ** 2 if abs((x - y).item()) <= 1 else abs(x - y) - 0.5


def naive(student, teacher, distance=25.0, angle=50.0):
    """Pairs (i, j) counted at i, triplets at the image in the middle of the angle."""
    B = len(student)

    def length(x, i, j):
        return (x[i] - x[j]).square().sum().sqrt() if i != j else x.new_zeros(())

    def psi(x, i, j):
        mean = sum(length(x, a, b) for a in range(B) for b in range(B)) / (B * (B - 1))
        return length(x, i, j) / mean

    def cosine(x, i, j, k):
        if i in (j, k):
            return x.new_zeros(())
        return (x[j] - x[i]) @ (x[k] - x[i]) / (length(x, i, j) * length(x, i, k))

    rows = []
    for i in range(B):
        pairs = sum(huber(psi(student, i, j), psi(teacher, i, j)) for j in range(B)) / B
        triplets = [huber(cosine(student, i, j, k), cosine(teacher, i, j, k)) for j in range(B) for k in range(B)]
        rows.append(distance * pairs + angle * sum(triplets) / B**2)
    return torch.stack(rows)


def test_the_paper_image_by_image():
    s, t = random_pair((5, 3), (5, 6))
    same_value_and_gradient(rkd(s, t), naive(s, t), s)
    same_value_and_gradient(rkd(s, t, 1.0, 0.0), naive(s, t, 1.0, 0.0), s)


def test_published_numbers():
    z = oracle("features/rkd")
    for case, weights in {"both": (25.0, 50.0), "distance": (1.0, 0.0), "angle": (0.0, 1.0)}.items():
        s = leaf(z["student_pooled"])
        as_published(
            rkd(s, z["teacher_pooled"], *weights), z[f"{case}.loss"], student=(s, z[f"{case}.grad_student_pooled"])
        )


def test_images_that_are_the_same_and_a_single_image_have_finite_gradients():
    s, t = random_pair((4, 3), (4, 3))
    doubled = leaf(s.detach()[[0, 0, 1, 2]].float())
    rkd(doubled, t.float()).sum().backward()
    assert doubled.grad.isfinite().all()
    assert doubled.grad.abs().max() < 1e3
    alone = leaf(s.detach()[:1])
    value = rkd(alone, t[:1])
    assert value.item() == 0
    value.sum().backward()
    assert alone.grad.count_nonzero() == 0
