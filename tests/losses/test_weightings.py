import math
from dataclasses import replace

import pytest
import reference
import torch

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import image_items, region_items
from hfkd.losses.weightings import Averaged, Entropy, Matched, Uniform

Z, V = (5 * torch.randn(2, 30, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).unbind()
ITEMS = image_items(V, Z, torch.zeros(30, dtype=torch.long))
H_T, H_S = (reference.rows(lambda r: reference.entropy(r, 3.0), x) for x in (Z, V))
LOG_C = math.log(10)


def test_ea_kd_is_the_papers_equation():
    torch.testing.assert_close(Entropy()(ITEMS), reference.rows(reference.ea_weight, Z, V))


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"upper_bound": 100.0}, H_T * (1 + H_S / 100) / 2),
        ({"student": False}, H_T),
        ({"teacher": False}, H_S),
        ({"interaction": True}, H_T * H_S / LOG_C),
        ({"inverted": True}, (LOG_C - H_T) * (1 + (LOG_C - H_S) / LOG_C) / 2),
        ({"inverted": True, "student": False}, LOG_C - H_T),
    ],
)
def test_the_ablations(keywords, expected):
    torch.testing.assert_close(Entropy(**keywords)(ITEMS), expected)


def test_the_weight_lies_between_0_and_log_c():
    certain = image_items(torch.tensor([[1e4, 0.0]]), torch.tensor([[1e4, 0.0]]), torch.tensor([0]))
    lost = image_items(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]))
    assert Entropy()(certain).item() == 0
    assert Entropy()(lost).item() == pytest.approx(math.log(2))


def test_matched_keeps_the_shape_and_has_mean_1():
    matched, plain = Matched()(ITEMS), Entropy()(ITEMS)
    assert matched.mean().item() == pytest.approx(1)
    torch.testing.assert_close(matched * plain.mean(), plain)


def test_averaged_gives_each_item_the_mean():
    averaged, plain = Averaged()(ITEMS), Entropy()(ITEMS)
    torch.testing.assert_close(averaged, torch.full_like(plain, sum(plain.tolist()) / len(plain)))


def test_of_two_controls_one_has_the_weights_and_one_the_size():
    torch.testing.assert_close(Matched()(ITEMS) * Averaged()(ITEMS), Entropy()(ITEMS))


def test_the_controls_mean_is_the_losss_where_samples_of_many_items_and_of_few_count_the_same():
    """With one distance for all items, `averaged` has the loss of EA-KD, and `matched` that of KD."""
    items = region_items(V, Z, torch.zeros(30, dtype=torch.long), [2, 21, 7])

    def size(weighting):
        ones = DistillationLoss(lambda items, t: torch.ones_like(t), weighting=weighting, ce_weight=0, kd_weight=1)
        return ones(items)[0].item()

    assert size("averaged") == pytest.approx(size("entropy"))
    assert size("matched") == pytest.approx(size("uniform"))


def test_matched_of_all_zero_weights_is_uniform():
    certain = image_items(torch.tensor([[1e4, 0.0]] * 2), torch.tensor([[1e4, 0.0]] * 2), torch.tensor([0, 0]))
    assert Matched()(certain).tolist() == [1, 1]


def test_a_sequence_shares_the_weight_of_its_mean_entropies():
    items = replace(ITEMS, sample=torch.arange(30) // 3, num_samples=10, own_sample=False)
    h_t, h_s = H_T.view(10, 3).mean(1), H_S.view(10, 3).mean(1)
    expected = (h_t * (1 + h_s / LOG_C) / 2).repeat_interleave(3)
    torch.testing.assert_close(Entropy()(items), expected)
    assert torch.equal(Entropy(level="item")(items), Entropy()(ITEMS))


def test_uniform():
    assert Uniform()(ITEMS).tolist() == [1.0] * 30


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"upper_bound": 0}, "upper_bound=0 must be a finite number above 0"),
        ({"upper_bound": -1.0}, "upper_bound=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"student": False, "teacher": False}, "leave no entropy"),
        ({"interaction": True, "student": False}, "product of both"),
        ({"level": "batch"}, "level='batch'"),
    ],
)
def test_bad_values_are_refused_when_built(keywords, message):
    with pytest.raises(ValueError, match=message):
        Entropy(**keywords)
