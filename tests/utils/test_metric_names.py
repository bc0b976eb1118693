"""Divergences are not called losses, and smaller is better."""

import pytest

from hfkd.reports.history import Choice
from hfkd.training.search import default_objective
from hfkd.utils.metric_names import is_divergence


@pytest.mark.parametrize(
    ("metric", "found"),
    [("eval_kl", True), ("kl", True), ("eval_far_kl", True), ("eval_loss", False), ("eval_f1", False)],
)
def test_divergences_by_name(metric, found):
    assert is_divergence(metric) is found
    assert Choice.by_name(metric).greater_is_better is (metric == "eval_f1")


def test_no_divergence_is_added_to_ones_own_metrics():
    objective = default_objective({"near": [], "far": []}, False, True, "maximize")
    assert objective({"eval_near_own": 1.0, "eval_far_own": 2.0, "eval_near_kl": 8.0, "eval_kl": 16.0}) == 3
