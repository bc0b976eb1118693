"""The numbers of an analysis on inputs whose answers are known."""

import math

import pytest
import torch

from hfkd.evaluation.analysis import compare, correlation_difference, sample_numbers, segments
from hfkd.evaluation.analysis.samples import divergence, ea_weight, extremes


def logits_of(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_energy_and_entropy_of_equal_logits():
    found = sample_numbers(torch.zeros(3, 5), torch.tensor([0, 0, 1]))
    assert torch.allclose(found.energy, torch.full((3,), -4 * math.log(5)))
    assert torch.allclose(found.entropy, torch.full((3,), math.log(5)))
    assert found.accuracy == pytest.approx(2 / 3)


def test_the_divergence_of_two_coins():
    teacher, student = logits_of([0.5, 0.5]), logits_of([0.9, 0.1])
    assert divergence(teacher, student).item() == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    # at temperature 2 the student's odds of 9 to 1 are 3 to 1
    softened = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert divergence(teacher, student, 2.0).item() == pytest.approx(softened)


def test_the_weight_is_ea_kds():
    flat, sure = torch.zeros(1, 4), torch.tensor([[900.0, 0, 0, 0]])
    labels = torch.tensor([0])
    assert ea_weight(flat, flat, labels).item() == pytest.approx(math.log(4))
    assert ea_weight(flat, sure, labels).item() == pytest.approx(math.log(4) / 2)
    assert ea_weight(sure, flat, labels).item() == pytest.approx(0)


def test_the_extremes_are_a_tenth_and_one_at_least():
    low, high = extremes(torch.arange(20.0).flip(0))
    assert (low.tolist(), high.tolist()) == ([19, 18], [1, 0])
    low, high = extremes(torch.tensor([2.0, 1.0]))
    assert (low.tolist(), high.tolist()) == ([1], [0])


def test_segments_of_rising_entropy():
    entropy = torch.tensor([0.4, 0.1, 0.3, 0.2])
    teacher, student = torch.tensor([False, True, True, True]), torch.tensor([False, True, False, False])
    first, second = segments(entropy, teacher, student, parts=2)
    assert first == {
        "images": 2,
        "entropy": pytest.approx(0.15),
        "teacher_accuracy": 1,
        "student_accuracy": 0.5,
        "gap": 0.5,
    }
    assert second == {
        "images": 2,
        "entropy": pytest.approx(0.35),
        "teacher_accuracy": 0.5,
        "student_accuracy": 0,
        "gap": 0.5,
    }
    assert [one["images"] for one in segments(entropy, teacher, student)] == [1, 1, 1, 1]


def test_correlations_do_not_see_scale_and_shift_and_see_a_turned_class():
    teacher = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    scaled = teacher * torch.tensor([1.0, 2.0, 3.0, 4.0]) - 5
    assert correlation_difference(teacher, scaled).max() < 1e-6
    turned = teacher * torch.tensor([-1.0, 1, 1, 1])
    found, own = correlation_difference(teacher, turned), torch.corrcoef(teacher.double().T)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[0, 1:] = expected[1:, 0] = 2 * own[0, 1:].abs()
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_constant_logit_has_no_correlation_and_the_mean_leaves_it_out():
    teacher = torch.tensor([[0.0, 1, 2], [1, 0, 2], [2, 1, 2], [3, 0, 2]])
    student = teacher * torch.tensor([1.0, -1, 1])
    difference = correlation_difference(teacher, student)
    assert difference[2].isnan().all()
    numbers, _ = compare(teacher, student, torch.tensor([0, 1, 2, 0]))
    r = torch.corrcoef(teacher[:, :2].T)[0, 1].abs().item()
    assert numbers["correlation_difference"]["mean"] == pytest.approx((0 + 0 + 2 * 2 * r) / 4)
    assert numbers["correlation_difference"]["max"] == pytest.approx(2 * r)


def test_a_student_beside_its_teacher():
    # ten images, from certain to uncertain; the student puts the last two into another class
    sure = torch.arange(10.0, 0, -1)
    teacher = torch.stack([sure, torch.zeros(10)], -1)
    student = teacher.clone()
    student[8:] = student[8:].flip(-1)
    numbers, _ = compare(teacher, student, torch.zeros(10, dtype=torch.long))
    assert (numbers["accuracy"], numbers["agreement"]) == (pytest.approx(0.8), pytest.approx(0.8))
    assert numbers["gap"] == pytest.approx(0.2)
    # KL between odds e^z and e^-z: z tanh(z / 2)
    apart = {z: z * math.tanh(z / 2) for z in (1.0, 2.0)}
    assert numbers["kl"] == pytest.approx(sum(apart.values()) / 10)
    assert (numbers["kl_lowest_entropy"], numbers["kl_highest_entropy"]) == (
        pytest.approx(0),
        pytest.approx(apart[1.0]),
    )
    assert [one["gap"] for one in numbers["by_teacher_entropy"]] == [0] * 8 + [1, 1]


def test_a_network_beside_itself():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    numbers, difference = compare(logits, logits, torch.arange(50) % 7)
    assert (numbers["gap"], numbers["agreement"], numbers["kl"], difference.max()) == (0, 1, 0, 0)
    assert numbers["by_teacher_entropy"] == numbers["by_student_entropy"]
