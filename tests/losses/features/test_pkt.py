import math

import torch
from feature_toys import as_published, leaf, oracle, random_pair, same_value_and_gradient

from hfkd.losses.features.pkt import pkt


def naive(student, teacher, eps=1e-7):
    """The row of image i: sum_j p_j|i log(p_j|i / q_j|i) / B, both from (1 + cosine) / 2."""
    B = len(student)

    def conditional(x, i):
        cosines = [x[i] @ x[j] / ((x[i].norm() + eps) * (x[j].norm() + eps)) for j in range(B)]
        kernel = [(c + 1) / 2 for c in cosines]
        return [k / sum(kernel) for k in kernel]

    rows = []
    for i in range(B):
        p, q = conditional(teacher, i), conditional(student, i)
        rows.append(sum(p[j] * torch.log((p[j] + eps) / (q[j] + eps)) for j in range(B)) / B)
    return torch.stack(rows)


def test_the_paper_image_by_image():
    s, t = random_pair((5, 7), (5, 4))
    same_value_and_gradient(pkt(s, t), naive(s, t), s)


def test_published_numbers():
    z = oracle("features/pkt")
    for case in ("", "signed."):
        s = leaf(z[f"{case}student_pooled"])
        as_published(pkt(s, z[f"{case}teacher_pooled"]), z[f"{case}loss"], student=(s, z[f"{case}grad_student_pooled"]))
    torch.testing.assert_close(30000 * z["loss"], z["loss_times_weight"])
    assert math.isclose(z["loss"], 4.65e-6, rel_tol=1e-2)
