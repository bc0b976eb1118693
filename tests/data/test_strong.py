"""The strong view: a function of the seed alone, inside the image's range, and a second view through the transform."""

import numpy as np
import torch
from torch.utils.data import DataLoader

from hfkd.data.collate import ImageCollator, views_as_rows
from hfkd.data.digits import load_digits
from hfkd.data.randaugment import CUTOUT_COLOUR, cutout, strong_views
from hfkd.data.transforms import ImageTransform, pack_pixels

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8))


def test_what_an_image_gets_depends_on_its_seed_alone():
    seeds = torch.arange(6)
    together = strong_views(IMAGES, seeds)
    assert together.dtype == torch.uint8
    assert together.shape == IMAGES.shape
    order = torch.tensor([3, 0, 5])
    torch.manual_seed(9)
    assert torch.equal(strong_views(IMAGES[order], seeds[order]), together[order])
    assert not torch.equal(strong_views(IMAGES, seeds + 6), together)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    strong_views(IMAGES, torch.arange(6))
    assert torch.equal(torch.rand(2), expected)


def test_cutout_covers_a_square_of_at_most_half_the_height_and_all_sizes_occur():
    areas, black = [], torch.zeros(3, 32, 32, dtype=torch.uint8)
    for _ in range(300):
        cut = (cutout(black) == torch.tensor(CUTOUT_COLOUR).view(3, 1, 1)).all(0)
        rows, columns = cut.any(1).sum().item(), cut.any(0).sum().item()
        assert cut.sum() == rows * columns
        assert max(rows, columns) <= 17  # 16, and one more where both edges round outwards
        areas.append(cut.sum().item())
    assert min(areas) < 10
    assert max(areas) > 150


def batch(transform, index):
    pixels = [pack_pixels(IMAGES[i].permute(1, 2, 0).numpy()) for i in index]
    return transform({"pixels": pixels, "labels": [0] * len(index), "index": list(index)})


def test_the_transform_adds_the_strong_view_and_leaves_the_weak_one_as_it_was():
    one, two = (ImageTransform(augment=True, seed=4, views=v) for v in (1, 2))
    single, double = batch(one, range(6)), batch(two, range(6))
    assert double["pixel_values"].shape == (6, 2, 3, 32, 32)
    assert torch.equal(double["pixel_values"][:, 0], single["pixel_values"])
    assert torch.equal(double["view"], torch.stack([single["view"], torch.full((6,), -1)], 1))
    again = batch(two, [4, 2])
    assert torch.equal(again["pixel_values"], double["pixel_values"][[4, 2]])
    two.set_epoch(1)
    assert not torch.equal(batch(two, range(6))["pixel_values"][:, 1], double["pixel_values"][:, 1])
    assert (
        batch(two.clean(), range(6))["pixel_values"].ndim == batch(two.one_view(), range(6))["pixel_values"].ndim == 4
    )


def test_a_loader_hands_both_views_to_the_networks_view_by_view():
    train = load_digits()[0].select(range(8)).with_transform(ImageTransform(augment=True, views=2))
    loaded = next(iter(DataLoader(train, 4, collate_fn=ImageCollator())))
    rows = views_as_rows(loaded)
    assert torch.equal(rows["pixel_values"][:4], loaded["pixel_values"][:, 0])
    assert torch.equal(rows["pixel_values"][4:], loaded["pixel_values"][:, 1])
    assert torch.equal(rows["index"], loaded["index"].repeat(2))
    assert rows["view"].tolist() == [*loaded["view"][:, 0].tolist(), *[-1] * 4]
    assert torch.equal(rows["labels"], loaded["labels"])
    assert views_as_rows(rows).keys() == rows.keys()
