"""Segmentation on two ranks, whose images differ in height and in width, has the scores of one process."""

import pytest
from rank_job_masks import scores
from test_ranks import run


def test_two_ranks_with_images_of_several_sizes_have_the_scores_of_one(tmp_path):
    """Maps are resized to their own labels; padded ones would be another picture."""
    pytest.importorskip("torchmetrics")
    _, found = run(tmp_path / "two", 2, "rank_job_masks.py", {})
    assert found == pytest.approx(scores(tmp_path / "one"), rel=1e-5)
