"""Real CIFAR-100, picture files and tables: decoded to the very pixels PIL shows, or refused with a reason."""

import io
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image, ImageOps

from hfkd.data.columns import label_names, num_labels
from hfkd.data.images import decode, image_hw, load_images
from hfkd.data.transforms import unpack_pixels


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Nothing is left in the user's cache, and nothing is found there."""
    cache = tmp_path_factory.mktemp("datasets-cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def cifar(data_dir, tmp_path_factory):
    """The first rows of the real files, in the real layout: a folder that `load_dataset` reads by its split names."""
    folder = tmp_path_factory.mktemp("cifar100")
    for split, source, rows in (("train", "train-00000-of-00004", 60), ("test", "test-00000-of-00001", 40)):
        batch = next(pq.ParquetFile(data_dir / "cifar100" / f"{source}.parquet").iter_batches(rows))
        pq.write_table(pa.Table.from_batches([batch]), folder / f"{split}-00000-of-00001.parquet")
    return folder


def pixels_of(dataset):
    return unpack_pixels(dataset[:]["pixels"]).permute(0, 2, 3, 1).numpy()


def png(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    picture = picture.convert(mode) if mode else picture
    picture.save(path)
    return picture


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png_bytes(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


# ---- CIFAR-100 -------------------------------------------------------------------------------------------------------


def test_cifar_is_what_its_files_hold(cifar):
    loaded = load_images(str(cifar))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 60, "test": 40}
    for split, rows in loaded.items():
        assert rows.column_names == ["pixels", "labels", "index"]
        stored = pq.read_table(cifar / f"{split}-00000-of-00001.parquet").to_pydict()
        files = [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in stored["img"]]
        assert np.array_equal(pixels_of(rows), np.stack(files))
        assert rows["labels"][:] == stored["fine_label"]
        assert rows["labels"][:] != stored["coarse_label"]
        assert rows["index"][:] == list(range(len(rows)))
        assert image_hw(rows) == (32, 32)
        assert num_labels(rows) == 100
        assert label_names(rows)[:3] == ["apple", "aquarium_fish", "baby"]


def test_the_other_label_column_on_request(cifar):
    loaded = load_images(str(cifar), label_column="coarse_label", train_split="test")
    assert loaded["train"]["labels"][:] == loaded["test"]["labels"][:]
    assert num_labels(loaded["train"]) == 20


def test_a_second_load_decodes_nothing(cifar, monkeypatch):
    first = load_images(str(cifar))
    monkeypatch.setattr("hfkd.data.images.pack_pixels", lambda image: pytest.fail("decoded again"))
    assert load_images(str(cifar))["train"]["pixels"][:] == first["train"]["pixels"][:]
    with pytest.raises(pytest.fail.Exception, match="decoded again"):  # another size is another decode
        load_images(str(cifar), image_size=16)


@pytest.mark.parametrize(("image_size", "hw"), [(16, (16, 16)), ((20, 12), (20, 12)), (40, (40, 40))])
def test_image_size_covers_and_crops_the_centre(cifar, image_size, hw):
    rows = load_images(str(cifar), image_size=image_size, train_split="test")["test"]
    assert image_hw(rows) == hw
    stored = pq.read_table(cifar / "test-00000-of-00001.parquet").to_pydict()["img"]
    picture = Image.open(io.BytesIO(stored[3]["bytes"])).convert("RGB")
    expected = np.asarray(ImageOps.fit(picture, hw[::-1], method=Image.Resampling.BICUBIC))
    assert np.array_equal(pixels_of(rows)[3], expected)


# ---- a folder of files -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Class folders with files of several sizes and kinds: colour, grey, alpha, palette, and a wide one."""
    pictures = {}
    for split in ("train", "test"):
        root, size = tmp_path / "pets" / split, (8, 6) if split == "train" else (5, 9)
        pictures[split, "cat"] = png(root / "cat" / "0.png", noise(*size, 3))
        pictures[split, "grey"] = png(root / "cat" / "1.png", noise(*size, seed=1))
        pictures[split, "alpha"] = png(root / "dog" / "2.png", noise(*size, 4, seed=2))
        pictures[split, "palette"] = png(root / "dog" / "3.png", noise(*size, 3, seed=3), "P")
        pictures[split, "wide"] = png(root / "dog" / "4.png", noise(4, 40, 3, seed=4))
    return tmp_path / "pets", pictures


def test_an_image_folder(folder):
    path, pictures = folder
    loaded = load_images(str(path))
    rows = loaded["train"]
    assert label_names(rows) == ["cat", "dog"]
    assert rows["labels"][:] == [0, 0, 1, 1, 1]
    got = pixels_of(rows)
    assert got.shape == (5, 8, 6, 3)
    for row, kind in enumerate(("cat", "grey", "alpha", "palette")):
        assert np.array_equal(got[row], np.asarray(pictures["train", kind].convert("RGB"))), kind
    assert (got[1] == got[1][..., :1]).all()
    assert np.array_equal(got[2], np.asarray(pictures["train", "alpha"])[..., :3])
    wide = ImageOps.fit(pictures["train", "wide"], (6, 8), method=Image.Resampling.BICUBIC)
    assert np.array_equal(got[4], np.asarray(wide))


def test_the_test_images_get_the_size_of_the_training_images(folder):
    path, _ = folder
    loaded = load_images(str(path))
    assert image_hw(loaded["test"]) == image_hw(loaded["train"]) == (8, 6)


def test_a_broken_file_is_named_with_its_row(folder):
    path, _ = folder
    broken = path / "train" / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(
        ValueError, match=r"the image in row 3 \(.*dog/3\.png\) cannot be used: .*; replace it, or remove"
    ):
        load_images(str(path))
    broken.write_bytes(b"this is no picture")
    with pytest.raises(ValueError, match=r"row 3 \(.*dog/3\.png\) cannot be used: cannot identify image file"):
        load_images(str(path))


def test_sixteen_bit_pixels_are_refused_not_clipped(folder):
    path, _ = folder
    png(path / "train" / "cat" / "0.png", noise(8, 6).astype(np.uint16) * 200)
    with pytest.raises(ValueError, match=r"row 0 \(.*cat/0\.png\) cannot be used: it has 16-bit or float pixels"):
        load_images(str(path))


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "label", "named"), [("image", "label", {}), ("img", "fine_label", {}), ("photo", "breed", True)]
)
def test_a_parquet_table(tmp_path, image, label, named):
    arrays = noise(3, 4, 5, 3)
    features = Features({image: datasets.Image(), label: ClassLabel(names=["cat", "dog"]), "note": Value("string")})
    rows = {image: [Image.fromarray(a) for a in arrays], label: [1, 0, 1], "note": ["", "", ""]}
    for split in ("train", "validation"):
        Dataset.from_dict(rows, features).to_parquet(tmp_path / "table" / f"{split}.parquet")
    named = {"image_column": image, "label_column": label} if named else {}
    loaded = load_images(str(tmp_path / "table"), **named)
    assert np.array_equal(pixels_of(loaded["test"]), arrays)  # validation stands in where there is no test split
    assert loaded["train"]["labels"][:] == [1, 0, 1]
    assert label_names(loaded["train"]) == ["cat", "dog"]


def test_a_parquet_table_that_pandas_wrote(tmp_path):
    """Without `datasets`' own metadata an image is a struct of bytes and path, or bytes alone."""
    arrays = noise(3, 4, 5, 3)
    plain = [png_bytes(a) for a in arrays]
    for kind, values in {"struct": [{"bytes": b, "path": None} for b in plain], "bytes": plain}.items():
        for split in ("train", "test"):
            (tmp_path / kind).mkdir(exist_ok=True)
            pq.write_table(pa.table({"image": values, "label": [2, 0, 1]}), tmp_path / kind / f"{split}.parquet")
        rows = load_images(str(tmp_path / kind))["train"]
        assert np.array_equal(pixels_of(rows), arrays), kind
        assert label_names(rows) is None
        assert num_labels(rows) == 3


def test_json_lines_of_nested_lists(tmp_path):
    arrays = noise(3, 4, 5, 3)
    for split in ("train", "test"):
        lines = [json.dumps({"image": a.tolist(), "label": i}) for i, a in enumerate(arrays)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    assert np.array_equal(pixels_of(load_images(str(tmp_path))["train"]), arrays)


# ---- refusals --------------------------------------------------------------------------------------------------------


def table(n=2, **columns):
    return Dataset.from_dict({"image": noise(n, 4, 4, 3).tolist(), "label": list(range(n))} | columns)


@pytest.mark.parametrize(
    ("data", "keywords", "message"),
    [
        (table(0), {}, "the dataset is empty"),
        (table().rename_column("image", "x"), {}, r"no image column among \['x', 'label'\]: .*pass image_column="),
        (table().rename_column("label", "x"), {}, r"no label column among \['image', 'x'\]: .*pass label_column="),
        (table(), {"image_column": "photo"}, r"image_column='photo' is not in the dataset: its columns are \['image'"),
        (table(), {"label_column": "breed"}, "label_column='breed' is not in the dataset"),
        (table(label=["cat", "dog"]), {}, r"column 'label' holds Value\('string'\) instead of class ids"),
        (table(label=[0.5, 1.0]), {}, r"holds Value\('float64'\) instead of class ids"),
        (table(label=[1, None]), {}, "row 1 has no label"),
        (table(image=[noise(4, 4, 3).tolist(), None]), {}, "the image in row 1 cannot be used: there is none"),
        (
            table(image=(noise(2, 4, 4, 3) / 255).tolist()),
            {},
            "row 0 cannot be used: its values are not integers from 0",
        ),
        (table(image=(noise(2, 4, 4, 3) + np.int64(100)).tolist()), {}, "values are not integers from 0 to 255"),
        (table(image=noise(2, 3, 8, 9).tolist()), {}, "row 0 cannot be used: Cannot handle this data type"),
        (table(image=[png_bytes(noise(4, 4, 3)), b"GIF89a"]), {}, "row 1 cannot be used: "),
    ],
)
def test_what_cannot_be_used_is_said(data, keywords, message):
    with pytest.raises(ValueError, match=message):
        decode(data, **keywords)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, r"no split 'test': it has \['train', 'extra'\]; pass test_split="),
        ({"test_split": "exam"}, r"no split 'exam': it has \['train', 'extra'\]; pass test_split="),
        ({"train_split": "learn", "test_split": "extra"}, "no split 'learn': .*pass train_split="),
    ],
)
def test_a_missing_split_is_said(monkeypatch, keywords, message):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: DatasetDict({"train": table(), "extra": table()}))
    with pytest.raises(ValueError, match=message):
        load_images("some/name", **keywords)
    assert len(load_images("some/name", test_split="extra")["test"]) == 2


@pytest.mark.parametrize("content", [None, "train/cat/", "notes.xyz"])
def test_a_folder_without_data_is_said(tmp_path, content):
    if content:
        path = tmp_path / content
        path.mkdir(parents=True) if content.endswith("/") else path.write_text("no image")
    with pytest.raises(ValueError, match="has no readable data: pass the folder with the files"):
        load_images(str(tmp_path))
