import torch
from feature_toys import as_published, leaf, oracle, random_pair, same_value_and_gradient

from hfkd.losses.features.sp import sp


def naive(student, teacher):
    """The row of image i of ||G_t - G_s||² / B, each row of G divided by its length."""
    B = len(student)

    def row(x, i):
        similarities = torch.stack([x[i].flatten() @ x[j].flatten() for j in range(B)])
        return similarities / similarities.square().sum().sqrt()

    return torch.stack([sum((row(teacher, i)[j] - row(student, i)[j]) ** 2 for j in range(B)) / B for i in range(B)])


def test_the_paper_image_by_image():
    s, t = random_pair((5, 3, 4, 4), (5, 2, 3, 3))
    same_value_and_gradient(sp(s, t), naive(s, t), s)


def test_published_numbers():
    z = oracle("features/sp")
    for case in ("last", "sizes_differ"):
        s = leaf(z[f"{case}.student1"])
        as_published(sp(s, z[f"{case}.teacher1"]), z[f"{case}.loss"], student=(s, z[f"{case}.grad_student1"]))
        torch.testing.assert_close(3000 * z[f"{case}.loss"], z[f"{case}.loss_times_weight"])
