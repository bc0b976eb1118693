import pytest
import torch
from feature_toys import as_published, leaf, oracle, random_pair, same_value_and_gradient

from hfkd.losses.features.lsh import hash_difference, lower_median
from hfkd.losses.features.maps import mean_squares


def naive(student, teacher, weight, bias):
    """Each function's hash value is a logit for the side of the hyperplane that the teacher's feature is on."""
    rows = []
    for s, t in zip(student, teacher, strict=True):
        total = 0.0
        for w, b in zip(weight, bias, strict=True):
            p = torch.sigmoid(w @ s + b)
            total = total - torch.log(p if w @ t + b > 0 else 1 - p)
        rows.append(total / len(weight))
    return torch.stack(rows)


def test_the_paper_image_by_image():
    s, t = random_pair((4, 5), (4, 5))
    (_, weight), (_, bias) = random_pair((1,), (7, 5), seed=1), random_pair((1,), (7,), seed=2)
    same_value_and_gradient(hash_difference(s, t, weight, bias), naive(s, t, weight, bias), s)


@pytest.mark.parametrize("case", ["lsh", "lshl2", "lshl2_l2", "lshl2_l1"])
def test_published_numbers(case):
    z = oracle("more/lsh")
    s, t = leaf(z["student"]), z["teacher"]
    distance = case.partition("_")[2] or "bce"
    values = hash_difference(s, t, z["hash.weight"], z["hash.bias"], distance)
    if case != "lsh":
        values = values + mean_squares(s, t)
    as_published(values, z[f"{case}.loss"], student=(s, z[f"{case}.grad_student"]))


def test_the_published_bias_is_the_lower_median():
    z = oracle("more/lsh")
    torch.testing.assert_close(-lower_median(z["train_teacher"] @ z["hash.weight"].T), z["hash.bias"])
