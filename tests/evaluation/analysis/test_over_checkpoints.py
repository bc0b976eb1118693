"""A student over its checkpoints: numbers that are known."""

import math

import pytest
import torch

from hfkd.evaluation.analysis.checkpoints import over_checkpoints

FLAT, SURE = [0.0, 0.0], [900.0, 0.0]  # entropies log 2 and 0


def test_entropy_goes_from_flat_to_sure():
    teacher = torch.tensor([[8.0, 0.0]] + [[2.0, 0.0]] * 19)
    labels = torch.zeros(20, dtype=torch.long)
    students = {20: torch.tensor([SURE] * 20), 10: torch.tensor([FLAT] * 10 + [SURE] * 10)}
    found = over_checkpoints(teacher, students, labels)
    first, last = found["steps"]
    assert (first["step"], last["step"]) == (10, 20)
    assert (first["entropy"], last["entropy"]) == (pytest.approx(math.log(2) / 2), pytest.approx(0))
    assert (first["entropy_sd"], last["entropy_sd"]) == (pytest.approx(math.log(2) / 2), pytest.approx(0))
    assert (first["accuracy"], last["accuracy"]) == (1, 1)
    # ten images vary between log 2 and 0, by half of that; the least certain teacher's two are among the others
    assert found["entropy_variability"]["all"] == pytest.approx(math.log(2) / 4)
    assert found["entropy_variability"]["lowest"] == pytest.approx(math.log(2) / 2)
    assert found["entropy_variability"]["highest"] == pytest.approx(0)


def test_the_divergence_falls_to_zero_where_the_student_becomes_the_teacher():
    teacher = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    found = over_checkpoints(teacher, {1: torch.zeros(30, 4), 2: teacher}, teacher.argmax(-1))
    first, last = found["steps"]
    p = teacher.double().softmax(-1)
    assert first["kl"] == pytest.approx((p * (p.log() + math.log(4))).sum(-1).mean().item())
    assert first["kl_lowest_entropy"] > first["kl"] > first["kl_highest_entropy"] > 0
    assert (last["kl"], last["accuracy"]) == (pytest.approx(0, abs=1e-9), 1)
