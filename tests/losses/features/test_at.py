import torch
import torch.nn.functional as F
from feature_toys import as_published, leaf, oracle, random_pair, same_value_and_gradient

from hfkd.losses.features.at import attention_distance


def naive(student, teacher):
    """mean_hw (q_s / ||q_s|| - q_t / ||q_t||)², q = mean_c F_c², of one image at a time."""

    def attention(image):
        places = [
            sum(x**2 for x in image[:, h, w]) / len(image) for h in range(image.shape[1]) for w in range(image.shape[2])
        ]
        norm = sum(q**2 for q in places) ** 0.5
        return [q / norm for q in places]

    rows = []
    for s, t in zip(student, teacher, strict=True):
        squares = [(a - b) ** 2 for a, b in zip(attention(s), attention(t), strict=True)]
        rows.append(sum(squares) / len(squares))
    return torch.stack(rows)


def test_the_paper_image_by_image():
    s, t = random_pair((3, 4, 3, 3), (3, 2, 3, 3))
    same_value_and_gradient(attention_distance(s, t), naive(s, t), s)


def test_the_larger_map_is_pooled_before_it_is_squared():
    s, t = random_pair((3, 4, 6, 6), (3, 2, 3, 3))
    same_value_and_gradient(attention_distance(s, t), naive(F.avg_pool2d(s, 2), t), s)
    same_value_and_gradient(attention_distance(t.requires_grad_(), s), naive(t, F.avg_pool2d(s, 2)), t)


def test_published_numbers():
    z = oracle("features/at")
    for case in ("stages", "sizes_differ"):
        maps = [leaf(z[f"{case}.student{k}"]) for k in (1, 2, 3)]
        values = [attention_distance(s, z[f"{case}.teacher{k}"]) for k, s in enumerate(maps, 1)]
        gradients = {f"student{k}": (s, z[f"{case}.grad_student{k}"]) for k, s in enumerate(maps, 1)}
        as_published(sum(values), z[f"{case}.loss"], **gradients)
        torch.testing.assert_close(1000 * z[f"{case}.loss"], z[f"{case}.loss_times_weight"])
        if case == "stages":
            torch.testing.assert_close(torch.stack([value.mean() for value in values]), z["stages.single_stage"])
