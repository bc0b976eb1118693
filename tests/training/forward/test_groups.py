"""What is kept of the outputs for groups of tokens, to find rows that are not finite."""

import torch

from hfkd.training.forward.groups import row_sums
from hfkd.utils.targets import Targets


def test_finite_logits_of_a_large_vocabulary_are_finite_in_float16():
    labels = torch.tensor([[0, 1, 2], [0, 3, -100]])
    logits = torch.full((3, 100_000), 4.0, dtype=torch.float16)
    assert row_sums(logits, Targets(labels)).isfinite().tolist() == [[True], [True]]
    logits[2, 7] = torch.inf
    assert row_sums(logits, Targets(labels)).isfinite().tolist() == [[True], [False]]
