"""Large images: a folder of JPEG and PNG files made of real photographs, decoded lazily, cropped, streamed."""

import pytest
import torch
from datasets import load_dataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from hfkd.data import ImageDataArguments, label_names, num_labels
from hfkd.data.collate import ImageCollator
from hfkd.data.epochs import ImageStream, image_transform, stream_length
from hfkd.data.he_da import add_high_energy
from hfkd.data.large_images import IMAGENET_MEAN, IMAGENET_STD, LargeImageTransform
from hfkd.data.view_ids import view_ids
from hfkd.teachers import scan

SIZE = 24


@pytest.fixture(scope="module")
def folder(data_dir, tmp_path_factory):
    """Two classes of 6 training and 3 test photographs of varying sizes, in CIFAR-100's own pixels."""
    root = tmp_path_factory.mktemp("photos")
    rows = load_dataset(str(data_dir / "cifar100"), split="train").select(range(18))
    for i, row in enumerate(rows):
        split, name = ("train" if i < 12 else "test"), ("bear", "fox")[i % 2]
        path = root / split / name / f"{i}.{'png' if i % 3 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["img"].resize((40 + 3 * i, 64 - 2 * i), Image.Resampling.BICUBIC).save(path)
    grey = Image.open(root / "train" / "bear" / "4.png").convert("L")
    grey.save(root / "train" / "bear" / "4.png")
    return root


def data(folder, **keywords):
    settings = {"image_size": SIZE, "image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
    return ImageDataArguments(dataset_name=str(folder), **{"resized_crop": True} | settings | keywords)


def test_evaluation_is_torchvisions_resize_and_centre_crop(folder):
    _, test = data(folder).load()
    assert len(test) == 6
    for row, path in zip(test, sorted((folder / "test").glob("*/*")), strict=True):
        picture = Image.open(path).convert("RGB")
        small = v2.CenterCrop(SIZE)(v2.Resize(27)(picture))
        expected = v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)(v2.ToDtype(torch.float32, True)(v2.ToImage()(small)))
        assert torch.equal(row["pixel_values"], expected)
        assert row["labels"] == ("bear", "fox").index(path.parent.name)
    assert {int(row["view"]) for row in test} == {0}


def test_training_is_torchvisions_random_resized_crop_under_the_rows_own_seed(folder):
    train, _ = data(folder).load(seed=5)
    image_transform(train).set_epoch(2)
    seeds = view_ids(torch.arange(12), 5, 2, 1 << 62).tolist()
    batch = train[:]
    for i, path in enumerate(sorted((folder / "train").glob("*/*"))):
        torch.manual_seed(seeds[i])
        view = v2.RandomHorizontalFlip()(v2.RandomResizedCrop(SIZE)(Image.open(path).convert("RGB")))
        expected = v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)(v2.ToDtype(torch.float32, True)(v2.ToImage()(view)))
        assert torch.equal(batch["pixel_values"][i], expected)
    assert batch["view"].tolist() == [-1] * 12
    assert (label_names(train), num_labels(train)) == (["bear", "fox"], 2)


def by_index(loader):
    return {int(i): x for batch in loader for i, x in zip(batch["index"], batch["pixel_values"], strict=True)}


def test_views_do_not_depend_on_batches_workers_or_the_global_generator(folder):
    train, _ = data(folder).load()
    workers = DataLoader(train, 5, collate_fn=ImageCollator(), num_workers=2, persistent_workers=True)
    seen = []
    for epoch in range(2):
        image_transform(train).set_epoch(epoch)
        torch.manual_seed(epoch + 17)
        before = torch.get_rng_state()
        one, two = by_index(workers), by_index(DataLoader(train, 4, shuffle=True, collate_fn=ImageCollator()))
        assert one.keys() == two.keys() == set(range(12))
        assert all(torch.equal(one[i], two[i]) for i in one)
        torch.set_rng_state(before)
        train[3]
        assert torch.equal(torch.get_rng_state(), before), "making a view leaves the global generator alone"
        seen.append(one)
    assert not any(torch.equal(seen[0][i], seen[1][i]) for i in range(12))
    first = train.with_transform(image_transform(train).at_epoch(0))
    assert torch.equal(first[3]["pixel_values"], seen[0][3])


def test_a_stream_reads_every_image_once_and_again_alike(folder):
    train, test = data(folder, streaming=True, shuffle_buffer=5).load()
    assert isinstance(train, ImageStream)
    passes = []
    for epoch in (0, 0, 1):
        train.set_epoch(epoch)
        rows = list(train)
        assert sorted(int(r["labels"]) for r in rows) == [0] * 6 + [1] * 6
        passes.append(torch.stack([r["pixel_values"] for r in rows]))
    assert torch.equal(passes[0], passes[1])
    assert not torch.equal(passes[0], passes[2])
    local = data(folder).load()[1]
    assert torch.equal(torch.stack([r["pixel_values"] for r in test]), local[:]["pixel_values"])
    assert (label_names(train), num_labels(train)) == (["bear", "fox"], 2)
    assert len(list(data(folder, streaming=True, max_train_images=5).load()[0])) == 5


def test_a_stream_says_how_long_it_is_where_it_is_known(folder):
    train, _ = data(folder, streaming=True).load()
    assert stream_length(train.rows) in (None, 12), "known once the folder has been loaded whole"
    assert len(ImageStream(train.rows, LargeImageTransform(), 12)) == 12
    with pytest.raises(TypeError, match="not known: set max_steps"):
        len(ImageStream(train.rows, LargeImageTransform()))


def test_he_da_mixes_large_images_too(folder):
    train, _ = data(folder).load()
    more = add_high_energy(train, torch.arange(12.0), 0.5)
    batch = ImageCollator()([more[i] for i in range(18)])
    assert batch["pixel_values"].shape == (18, 3, SIZE, SIZE)
    assert batch["labels"].sum(1).tolist() == pytest.approx([1] * 18)
    assert torch.equal(batch["pixel_values"][:12], train[:]["pixel_values"])


def test_a_broken_picture_is_named_when_its_turn_comes(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "broken")
    path = tmp_path / "broken" / "train" / "fox" / "1.png"
    path.write_bytes(path.read_bytes()[:100])
    train, _ = data(tmp_path / "broken").load()
    with pytest.raises(ValueError, match=r"the image in row \d+ \(.*1\.png\) cannot be used"):
        train[:]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"streaming": True, "resized_crop": False}, "streaming=True needs resized_crop"),
        ({"streaming": True, "imbalance_factor": 0.5}, "no imbalance_factor"),
        ({"views": 2}, "views=2, but resized_crop"),
        ({"test_split": "val"}, r"has no split 'val': it has \['test', 'train'\]; pass test_split="),
        ({"image_std": [0.1, 0.0, 0.1]}, r"std\[1\]=0.0 must be a finite number above 0"),
    ],
)
def test_what_cannot_be_read_is_refused(folder, keywords, message):
    with pytest.raises(ValueError, match=message):
        data(folder, **keywords).load()


def test_a_teacher_does_not_scan_a_stream(folder):
    from toys import teacher

    with pytest.raises(ValueError, match="load the data without streaming, or pass thresholds"):
        scan(teacher(2), data(folder, streaming=True).load()[0])
