import pytest
import torch
from feature_toys import as_published, leaf, oracle, random_pair, same_value_and_gradient

from hfkd.losses.features.maps import mean_squares
from hfkd.losses.features.regressor import Regressor


def naive(hint, teacher):
    """Over channels and places of one image, (r - t)²."""
    rows = []
    for r, t in zip(hint, teacher, strict=True):
        squares = [(a - b) ** 2 for a, b in zip(r.flatten(), t.flatten(), strict=True)]
        rows.append(sum(squares) / len(squares))
    return torch.stack(rows)


def test_the_paper_image_by_image():
    s, t = random_pair((3, 2, 4, 4), (3, 5, 4, 4))
    regressor = Regressor((2, 4, 4), (5, 4, 4)).double()
    same_value_and_gradient(mean_squares(regressor(s), t), naive(regressor(s), t), s)


@pytest.mark.parametrize("case", ["same", "student_larger", "teacher_larger", "valid_conv"])
def test_published_numbers(case):
    z = oracle("features/fitnet")
    s, t = leaf(z[f"{case}.student"]), z[f"{case}.teacher"]
    regressor = Regressor(s.shape[1:], t.shape[1:]).double()
    names = [name for name, _ in regressor.named_parameters()]
    regressor.load_state_dict({name: z[f"{case}.regressor.{name}"] for name in names}, strict=False)
    values = mean_squares(regressor(s), t)
    torch.testing.assert_close(values, z[f"{case}.derived_per_sample"], rtol=1e-6, atol=1e-12)
    parameters = {
        name: (parameter, z[f"grad__{case}.regressor.{name}"])
        for name, parameter in regressor.named_parameters()
        if name != "conv.bias"  # in front of a batch norm its gradient is 0, but for rounding
    }
    as_published(values, z[f"{case}.loss"], student=(s, z[f"{case}.grad_student"]), **parameters)
    torch.testing.assert_close(100 * z[f"{case}.loss"], z[f"{case}.loss_times_weight"])


def test_maps_that_no_convolution_joins_are_refused():
    with pytest.raises(ValueError, match="the student's map is 4x4 and the teacher's 7x7: a smaller student map"):
        Regressor((2, 4, 4), (3, 7, 7))
    assert Regressor((2, 8, 6), (3, 5, 5))(torch.zeros(1, 2, 8, 6)).shape == (1, 3, 5, 5)
