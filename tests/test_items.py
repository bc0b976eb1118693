from dataclasses import replace

import pytest
import torch

from hfkd.items import count_image_items, image_items


def test_an_image_is_an_item_and_a_sample():
    items = image_items(torch.randn(5, 3), torch.randn(5, 3), torch.zeros(5, dtype=torch.long), progress=2.5)
    assert len(items) == count_image_items(items.labels) == 5
    assert items.sample.tolist() == [0, 1, 2, 3, 4]
    assert items.progress == 2.5


def test_mean_over_sample_is_the_value_itself_for_images_bit_for_bit():
    items = image_items(torch.randn(5, 3), torch.randn(5, 3), torch.zeros(5, dtype=torch.long))
    values = torch.randn(5)
    assert torch.equal(items.mean_over_sample(values), values)


def test_mean_over_sample_averages_items_that_share_a_sample():
    items = image_items(torch.randn(5, 3), torch.randn(5, 3), torch.zeros(5, dtype=torch.long))
    items = replace(items, sample=torch.tensor([0, 2, 0, 2, 2]), num_samples=3)
    assert items.mean_over_sample(torch.tensor([1.0, 3.0, 3.0, 6.0, 9.0])).tolist() == [2, 6, 2, 6, 6]


def test_mixed_labels_count_images_not_elements():
    assert count_image_items(torch.rand(4, 100)) == 4


def test_different_class_counts_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"student gives 3 classes and the teacher 4"):
        image_items(torch.randn(2, 3), torch.randn(2, 4), torch.zeros(2, dtype=torch.long))
