"""HE-DA: which images are chosen, what the added rows are made of, and that nothing depends on who asks."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from torch.utils.data import DataLoader
from toys import Net, teacher

from hfkd.data.collate import ImageCollator
from hfkd.data.epochs import image_transform
from hfkd.data.he_da import HighEnergyTransform, add_high_energy, original_images, select_by_energy
from hfkd.data.resident import ResidentImages
from hfkd.data.transforms import ImageTransform, pack_pixels
from hfkd.teachers import scan

N, CLASSES, RATIO = 30, 5, 0.4
K = 12


def plain(n=N, transform=None):
    """Every image is one flat colour, a different one for each: a mixed pixel says whose it is."""
    rows = {
        "pixels": [pack_pixels(np.full((8, 8, 3), 1 + 8 * i, dtype=np.uint8)) for i in range(n)],
        "labels": [i % CLASSES for i in range(n)],
        "index": list(range(n)),
    }
    data = Dataset.from_dict(rows).cast_column("labels", ClassLabel(names=list("abcde")))
    default = ImageTransform((0.0,) * 3, (1 / 255,) * 3, augment=True, padding=0, seed=3)
    return data.with_transform(transform or default)


def energies(n=N):
    return torch.randn(n, generator=torch.Generator().manual_seed(4))


def rows_of(data, rows):
    return data[list(rows)]


# ---- which images ----------------------------------------------------------------------------------------------------


def naive_selection(values, ratio, side):
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    count = int(len(values) * ratio + 1e-9)
    low = {"high": 0, "low": count, "both": count // 2}[side]
    return sorted(order[:low] + order[len(order) - (count - low) :])


@pytest.mark.parametrize("side", ["high", "low", "both"])
@pytest.mark.parametrize("ratio", [0.05, 0.29, 0.4, 0.5, 1.0])
def test_the_selected_set_is_the_naive_one(side, ratio):
    values = energies(100)
    assert select_by_energy(values, ratio, side).tolist() == naive_selection(values.tolist(), ratio, side)
    tied = (values * 2).round()
    assert select_by_energy(tied, ratio, side).tolist() == naive_selection(tied.tolist(), ratio, side)


def test_equal_energies_select_nothing():
    with pytest.raises(ValueError, match="all 9 images have the energy -2, so that none can be selected"):
        select_by_energy(torch.full((9,), -2.0), 0.4)


def test_the_selection_follows_the_rows():
    values, order = energies(100), torch.randperm(100)
    chosen, permuted = select_by_energy(values, 0.3), select_by_energy(values[order], 0.3)
    assert sorted(order[permuted].tolist()) == chosen.tolist()
    assert values[chosen].min() > np.sort(values)[69]


# ---- the added rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_added_rows_are_mixed_from_two_selected_images_and_so_are_their_labels(mix):
    data = add_high_energy(plain(), energies(), RATIO, mix)
    selected = set(select_by_energy(energies(), RATIO).tolist())
    assert len(data) == N + K
    batch = data[:]
    assert batch["labels"].shape == (N + K, CLASSES)
    torch.testing.assert_close(batch["labels"].sum(1), torch.ones(N + K))
    assert (batch["view"][N:] == -1).all()
    assert len(set(batch["index"].tolist())) == N + K
    for image, label in zip(batch["pixel_values"][N:], batch["labels"][N:], strict=True):
        pixels, counts = image.round().unique(return_counts=True)
        if mix == "cutmix":
            parents = [(int(p) - 1) // 8 for p in pixels]
            assert set(parents) <= selected
            naive = torch.zeros(CLASSES)
            for parent, count in zip(parents, counts, strict=True):
                naive[parent % CLASSES] += count / image.numel()
            torch.testing.assert_close(label, naive)
        else:
            assert len(pixels) == 1
            assert (label > 0).sum() <= 2
    bases = [data.with_format(None)[i]["pixels"] for i in range(N, N + K)]
    assert bases == [data.with_format(None)[i]["pixels"] for i in sorted(selected)]


def test_mixup_pixels_and_labels_have_the_same_lambda():
    pair = plain().select([0, 6]).with_transform(image_transform(plain()))  # colours 1 and 49, labels 0 and 1
    batch = add_high_energy(pair, torch.zeros(2), 1.0, "mixup")[:]
    for image, label in zip(batch["pixel_values"][2:], batch["labels"][2:], strict=True):
        assert image.mean().item() == pytest.approx(1 * label[0].item() + 49 * label[1].item(), abs=1e-3)


def test_plain_rows_stay_what_they_were():
    before, after = plain()[:], add_high_energy(plain(), energies(), RATIO)[:]
    assert torch.equal(after["pixel_values"][:N], before["pixel_values"])
    assert torch.equal(after["labels"][:N].argmax(1), before["labels"])
    assert set(after["labels"][:N].unique().tolist()) == {0.0, 1.0}
    for name in ("index", "view"):
        assert torch.equal(after[name][:N], before[name])


def test_a_partner_is_another_image_and_any_of_the_selected():
    data, seen = add_high_energy(plain(), energies(), RATIO), set()
    transform = image_transform(data)
    for epoch in range(40):
        transform.set_epoch(epoch)
        for base, image in zip(select_by_energy(energies(), RATIO).tolist(), data[N:]["pixel_values"], strict=True):
            seen |= {(base, (int(p) - 1) // 8) for p in image.round().unique()}
    pairs = {(a, b) for a, b in seen if a != b}
    assert len(pairs) > 0.8 * K * (K - 1), "40 epochs meet most of the pairs"


def test_both_images_come_in_training_views():
    gradient = np.arange(1, 193, dtype=np.uint8).reshape(8, 8, 3)
    rows = {"pixels": [pack_pixels(gradient)] * 40, "labels": [0, 1] * 20, "index": list(range(40))}
    views = Dataset.from_dict(rows).with_transform(ImageTransform((0.0,) * 3, (1 / 255,) * 3, augment=True, padding=0))
    mixed = add_high_energy(views, torch.zeros(40), 1.0)[40:]["pixel_values"]
    straight = torch.tensor(gradient).permute(2, 0, 1).float()
    halves = [(bool(image[:, 0, 0].sub(straight[:, 0, 0]).abs().max() < 0.5)) for image in mixed]
    assert 5 < sum(halves) < 35, "mirrored and not"
    both = [
        not torch.allclose(m, straight, atol=0.1) and not torch.allclose(m, straight.flip(2), atol=0.1) for m in mixed
    ]
    assert any(both), "some boxes hold the other view"
    clean = add_high_energy(views, torch.zeros(40), 1.0)
    clean = clean.with_transform(image_transform(clean).clean())
    torch.testing.assert_close(clean[40:]["pixel_values"], straight.expand(40, -1, -1, -1))


# ---- who asks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_a_row_does_not_depend_on_its_batch(mix):
    data = add_high_energy(plain(), energies(), RATIO, mix)
    whole = data[:]
    torch.manual_seed(17)  # the global generators have no say
    np.random.seed(17)
    order = torch.randperm(N + K)
    for name, values in rows_of(data, order.tolist()).items():
        assert torch.equal(values, whole[name][order]), name
    for row in (0, N, N + K - 1):
        assert torch.equal(data[row]["pixel_values"], whole["pixel_values"][row])
    halves = [data.shard(2, i)[:] for i in range(2)]  # as two ranks would share it
    assert torch.equal(torch.cat([h["labels"] for h in halves]), whole["labels"])


def by_index(loader):
    return {int(i): (x, y) for b in loader for i, x, y in zip(b["index"], b["pixel_values"], b["labels"], strict=True)}


def test_workers_and_a_fresh_start_make_the_same_rows_in_every_epoch():
    data = add_high_energy(plain(), energies(), RATIO)
    workers = DataLoader(data, 5, collate_fn=ImageCollator(), num_workers=2, persistent_workers=True)
    seen = []
    for epoch in range(2):
        image_transform(data).set_epoch(epoch)
        resumed = add_high_energy(plain(), energies(), RATIO)  # another process, which starts in this epoch
        image_transform(resumed).set_epoch(epoch)
        one, two = by_index(workers), by_index(DataLoader(resumed, 7, shuffle=True, collate_fn=ImageCollator()))
        assert one.keys() == two.keys()
        assert all(torch.equal(a, b) for i in one for a, b in zip(one[i], two[i], strict=True))
        seen.append(one)
    assert any(not torch.equal(seen[0][i][0], seen[1][i][0]) for i in seen[0] if i >= N)


def test_another_seed_mixes_otherwise():
    one, two = (add_high_energy(plain(), energies(), RATIO, seed=s)[N:]["pixel_values"] for s in (0, 1))
    assert not torch.equal(one, two)


# ---- what else looks at the data -------------------------------------------------------------------------------------


def test_a_teacher_scan_sees_the_training_set_alone(tmp_path):
    before = plain()
    after = add_high_energy(before, energies(), RATIO)
    for views in ("train", "clean"):
        first = scan(teacher(), before, views=views, cache_dir=tmp_path, progress_bar=False)
        second = scan(teacher(), after, views=views, cache_dir=tmp_path, progress_bar=False)
        assert torch.equal(first.energy, second.energy)
    assert len(list(tmp_path.iterdir())) == 2, "the added rows make no other scan"
    assert original_images(before) is before


@pytest.mark.parametrize(
    "rows", [range(20), range(N - 5, N + 5), torch.randperm(N + K, generator=torch.Generator().manual_seed(0)).tolist()]
)
def test_the_original_images_are_found_in_any_part_and_order(rows):
    added = add_high_energy(plain(), energies(), RATIO)
    kept = original_images(added.select(rows))
    assert kept.with_format(None)["index"][:] == [row for row in rows if row < N]
    assert kept.column_names == plain().column_names


def test_at_epoch_and_clean_leave_the_original_alone():
    data = add_high_energy(plain(), energies(), RATIO)
    transform = image_transform(data)
    transform.set_epoch(3)
    third = data[:]["pixel_values"]
    assert torch.equal(data.with_transform(transform.at_epoch(3))[:]["pixel_values"], third)
    assert not torch.equal(data.with_transform(transform.at_epoch(0))[:]["pixel_values"], third)
    assert torch.equal(data[:]["pixel_values"], third)
    assert (transform.mean, transform.std, transform.num_views) == ((0.0,) * 3, (1 / 255,) * 3, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: add_high_energy(plain().with_format(None), energies()),
            "HE-DA needs a dataset of hfkd.data.load_images",
        ),
        (lambda: add_high_energy(plain(), energies(7)), "7 energies for 30 images: scan the same dataset"),
        (lambda: add_high_energy(plain(), energies(), 0.0), r"ratio=0.0 must be in \(0, 1\]"),
        (lambda: add_high_energy(plain(), energies(), 0.01), "ratio=0.01 of 30 images is less than one"),
        (lambda: add_high_energy(plain(), energies(), mix="cutout"), "mix='cutout' must be one of"),
        (lambda: add_high_energy(plain(), energies(), side="top"), "side='top' must be one of"),
        (lambda: add_high_energy(plain(), energies() * float("nan")), "energies contain NaN or infinity"),
        (
            lambda: add_high_energy(add_high_energy(plain(), energies()), energies(42)),
            "have been added to this dataset",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_images_held_as_tensors_are_mixed_as_stored_ones():
    mixed = [add_high_energy(data, energies(), RATIO) for data in (plain(), ResidentImages(plain()))]
    stored, held = (next(iter(DataLoader(data, N + K, collate_fn=ImageCollator()))) for data in mixed)
    assert all(torch.equal(stored[name], held[name]) for name in stored)


def test_a_network_takes_the_rows():
    data = add_high_energy(plain(), energies(), RATIO)
    batch = ImageCollator()([data[i] for i in range(N - 2, N + 2)])
    assert Net()(batch["pixel_values"]).shape == batch["labels"].shape
    assert isinstance(image_transform(data), HighEnergyTransform)
