"""Views of packed images against a naive implementation, image by image."""

import collections

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from hfkd.data.collate import ImageCollator
from hfkd.data.transforms import (
    CIFAR_MEAN,
    CIFAR_STD,
    ImageTransform,
    crop_and_flip,
    pack_pixels,
    packed_size,
    unpack_pixels,
)
from hfkd.data.view_ids import view_ids

MASK = (1 << 64) - 1
PINNED = [
    [69, 88, 92, 106, 13, 121, 76, 36],
    [7, 27, 156, 43, 112, 149, 66, 73],
]  # (seed 0, epoch 0) and (seed 42, epoch 3)


def images(n, height=8, width=6, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (n, height, width, 3), dtype=np.uint8)  # 1: black is padding


def dataset(n=24, transform=None, **sizes):
    pixels = images(n, **sizes)
    rows = {"pixels": [pack_pixels(p) for p in pixels], "labels": [i % 7 for i in range(n)], "index": list(range(n))}
    data = Dataset.from_dict(rows)
    data.set_transform(transform or ImageTransform(augment=True))
    return data, pixels


def naive_view(image, view, padding, flip):
    """Image [H, W, 3]: pad with zeros, slice, mirror."""
    height, width, _ = image.shape
    mirrored, offset = (view % 2, view // 2) if flip else (0, view)
    top, left = divmod(offset, 2 * padding + 1)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    crop = padded[top : top + height, left : left + width]
    return crop[:, ::-1] if mirrored else crop


def splitmix64(x):
    """Steele, Lea, Flood 2014, in Python's own integers."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def naive_view_id(index, seed, epoch, num_views):
    epoch_key = splitmix64((epoch + 0x5851F42D4C957F2D) & MASK)
    key = splitmix64(splitmix64(seed & MASK) ^ epoch_key) ^ splitmix64(index + 1)
    return (splitmix64(key) >> 1) % num_views


# ---- packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 6), (1, 300), (32, 32)])
def test_packing_comes_back_for_any_shape(height, width):
    pixels = images(3, height, width)
    packed = [pack_pixels(p) for p in pixels]
    assert packed_size(packed[0]) == (height, width)
    assert len(packed[0]) == 4 + 3 * height * width
    assert np.array_equal(unpack_pixels(packed).permute(0, 2, 3, 1).numpy(), pixels)


def test_images_of_two_sizes_are_refused_even_when_their_bytes_add_up():
    packed = [pack_pixels(images(1, *size)[0]) for size in ((2, 8), (8, 2))]
    with pytest.raises(
        ValueError, match=r"the images of a batch have different sizes \[\(2, 8\), \(8, 2\)\]: load all of them"
    ):
        unpack_pixels(packed)


# ---- views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "flip", "views"), [(4, True, 162), (4, False, 81), (1, True, 18), (0, True, 2)])
def test_every_view_is_the_naive_one(padding, flip, views):
    assert ImageTransform(padding=padding, flip=flip).num_views == views
    pixels = images(views)
    got = crop_and_flip(torch.tensor(pixels).permute(0, 3, 1, 2), torch.arange(views), padding, flip)
    expected = np.stack([naive_view(p, v, padding, flip) for v, p in enumerate(pixels)])
    assert np.array_equal(got.permute(0, 2, 3, 1).numpy(), expected)
    assert len({naive_view(pixels[0], v, padding, flip).tobytes() for v in range(views)}) == views


def test_normalising_is_the_formula_and_padding_is_black_before_it():
    transform = ImageTransform(augment=True, seed=3)
    data, pixels = dataset(40, transform)
    got = data[:]["pixel_values"]
    assert got.dtype == torch.float32
    views = [naive_view_id(i, 3, 0, 162) for i in range(40)]
    cropped = np.stack([naive_view(p, v, 4, True) for p, v in zip(pixels, views, strict=True)])
    expected = (cropped / 255 - CIFAR_MEAN) / CIFAR_STD
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy(), expected, rtol=0, atol=1e-6)
    black = torch.tensor(-np.array(CIFAR_MEAN) / CIFAR_STD, dtype=torch.float32)
    padded = torch.tensor((cropped == 0).all(-1))
    assert padded.any()
    torch.testing.assert_close(got.permute(0, 2, 3, 1)[padded], black.expand(int(padded.sum()), 3), rtol=0, atol=1e-6)


def test_clean_shows_the_image_itself():
    transform = ImageTransform(augment=True, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    data, pixels = dataset(5, transform.clean())
    expected = torch.tensor(pixels).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(data[:]["pixel_values"], expected, rtol=0, atol=1e-7)
    assert transform.augment
    assert not torch.equal(transform(dict(data.with_format(None)[:]))["pixel_values"], data[:]["pixel_values"])


def test_at_epoch_is_that_epoch_whatever_set_epoch_says():
    transform = ImageTransform(augment=True)
    data, _ = dataset(20, transform)
    first = data[:]["pixel_values"]
    transform.set_epoch(2)
    third = data[:]["pixel_values"]
    assert not torch.equal(first, third)
    assert torch.equal(data.with_transform(transform.at_epoch(0))[:]["pixel_values"], first)
    assert int(transform.epoch) == 2


# ---- which view ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (42, 7), (-1, 199), (2**62, 1)])
@pytest.mark.parametrize("views", [162, 81, 2])
def test_the_hash_is_splitmix64(seed, epoch, views):
    index = torch.cat([torch.arange(500), torch.tensor([49_999, 2**31, 2**40])])
    expected = [naive_view_id(i, seed, epoch, views) for i in index.tolist()]
    assert view_ids(index, seed, epoch, views).tolist() == expected
    assert view_ids(index, seed, torch.tensor(epoch), views).tolist() == expected


def test_these_views_never_change():
    """A run that is resumed with a later version sees the images it would have seen."""
    assert view_ids(torch.arange(8), 0, 0, 162).tolist() == [naive_view_id(i, 0, 0, 162) for i in range(8)]
    assert view_ids(torch.arange(8), 0, 0, 162).tolist() == PINNED[0]
    assert view_ids(torch.arange(8), 42, 3, 162).tolist() == PINNED[1]


def chi_square(counts, expected):
    return float(((counts.double() - expected) ** 2 / expected).sum())


def test_views_are_uniform_over_images_and_over_epochs():
    # 161 degrees of freedom: mean 161, standard deviation 18; 250 is five of them away.
    over_images = torch.bincount(view_ids(torch.arange(81_000), 0, 5, 162), minlength=162)
    assert chi_square(over_images, 500) < 250
    over_epochs = torch.cat([view_ids(torch.arange(40), 1, epoch, 162) for epoch in range(2000)])
    assert chi_square(torch.bincount(over_epochs, minlength=162), 80_000 / 162) < 250


@pytest.mark.parametrize("other", [{"seed": 1, "epoch": 0}, {"seed": 0, "epoch": 1}, {"seed": 1, "epoch": 1}])
def test_another_seed_or_epoch_gives_independent_views(other):
    index = torch.arange(50_000)
    first, second = view_ids(index, 0, 0, 162), view_ids(index, **other, num_views=162)
    # Independent: the pair's parities and offsets meet 1 time in 162, and each of 4 parity pairs 1 time in 4.
    assert abs((first == second).double().mean().item() - 1 / 162) < 5 * (1 / 162 / 50_000) ** 0.5
    pairs = torch.bincount((first % 2) * 2 + second % 2, minlength=4)
    assert chi_square(pairs, 12_500) < 30


def test_neighbouring_images_have_independent_views():
    views = view_ids(torch.arange(50_001), 0, 0, 162)
    assert abs((views[1:] == views[:-1]).double().mean().item() - 1 / 162) < 5 * (1 / 162 / 50_000) ** 0.5


# ---- through datasets and the DataLoader -----------------------------------------------------------------------------


def by_index(loader):
    seen = {}
    for batch in loader:
        seen |= {int(i): image for i, image in zip(batch["index"], batch["pixel_values"], strict=True)}
    return seen


def test_a_view_does_not_depend_on_the_batch():
    data, _ = dataset(24)
    whole = data[:]["pixel_values"]
    assert torch.equal(torch.stack([data[i]["pixel_values"] for i in range(24)]), whole)
    shuffled = torch.randperm(24)
    assert torch.equal(data[shuffled.tolist()]["pixel_values"], whole[shuffled])
    assert torch.equal(data.select([5, 3])[:]["pixel_values"], whole[[5, 3]])


def test_the_loader_fetches_whole_batches(monkeypatch):
    data, pixels = dataset(10, ImageTransform(mean=(0.0,) * 3, std=(1.0,) * 3))
    calls = collections.Counter()
    original = ImageTransform.__call__
    monkeypatch.setattr(
        ImageTransform, "__call__", lambda self, rows: (calls.update([len(rows["index"])]), original(self, rows))[1]
    )
    batches = list(DataLoader(data, batch_size=4, collate_fn=ImageCollator()))
    assert calls == {4: 2, 2: 1}
    assert [b["labels"].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 0], [1, 2]]
    assert torch.cat([b["index"] for b in batches]).tolist() == list(range(10))
    got = torch.cat([b["pixel_values"] for b in batches])
    torch.testing.assert_close(got, torch.tensor(pixels).permute(0, 3, 1, 2) / 255, rtol=0, atol=1e-7)


def test_persistent_workers_make_the_same_views_and_hear_of_the_next_epoch():
    transform = ImageTransform(augment=True, seed=9)
    data, _ = dataset(24, transform)
    alone = DataLoader(data, 5, collate_fn=ImageCollator(), shuffle=True)
    workers = DataLoader(data, 5, collate_fn=ImageCollator(), num_workers=2, persistent_workers=True)
    expected = []
    for epoch in range(3):
        transform.set_epoch(epoch)
        one, two = by_index(alone), by_index(workers)
        assert one.keys() == two.keys() == set(range(24))
        assert all(torch.equal(one[i], two[i]) for i in one), f"epoch {epoch} differs in workers"
        expected.append(torch.stack([one[i] for i in range(24)]))
    assert not torch.equal(expected[0], expected[1])
    assert not torch.equal(expected[1], expected[2])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"std": (0.2, 0.0, 0.2)}, r"std\[1\]=0.0 must be a finite number above 0"),
        ({"std": (0.2, float("nan"), 0.2)}, r"std\[1\]=nan"),
        ({"padding": -1}, "padding=-1 must be 0 or more pixels"),
    ],
)
def test_bad_values_are_refused_when_built(keywords, message):
    with pytest.raises(ValueError, match=message):
        ImageTransform(**keywords)


def test_the_view_number_says_which_crop_and_flip_was_made():
    transform, clean = ImageTransform(augment=True, seed=1), ImageTransform()
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    batch = {"pixels": [pack_pixels(image)] * 5, "labels": [0] * 5, "index": list(range(5))}
    made = transform(batch)
    assert len(set(made["view"].tolist())) > 1
    for row, view in enumerate(made["view"]):
        again = crop_and_flip(unpack_pixels(batch["pixels"])[row : row + 1], view[None], 4, True)
        plain = clean({"pixels": [pack_pixels(again[0].permute(1, 2, 0).numpy())], "labels": [0], "index": [0]})
        torch.testing.assert_close(made["pixel_values"][row], plain["pixel_values"][0])
    middle = clean(batch)["view"]
    torch.testing.assert_close(
        crop_and_flip(unpack_pixels(batch["pixels"]), middle, 4, True), unpack_pixels(batch["pixels"])
    )
