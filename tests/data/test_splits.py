"""Splits are the folders at the top: words in the names of classes and files move no image."""

import shutil

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from PIL import Image

from hfkd.data import label_names, load_images
from hfkd.data.large_images import load_large_images
from hfkd.data.text_files import read_jsonl, read_splits

WORDS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets-cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def tree(root, **splits):
    """Pictures root/split/class/0.png, ..., each with pixels of its own; `splits`: how many of each class."""
    generator = np.random.default_rng(0)
    for split, classes in splits.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return root


def pixels(rows):
    return [bytes(p) for p in rows.with_format(None)["pixels"][:]]


def sizes_of_stored(root, **keywords):
    loaded = load_images(str(root), **keywords)
    return len(loaded["train"]), len(loaded["test"])


def sizes(root, **keywords):
    """How many rows each loader finds for training and testing, the same for all, and no image in both."""
    loaded = load_images(str(root), **keywords)
    train, test = pixels(loaded["train"]), pixels(loaded["test"])
    assert len(set(train) | set(test)) == len(train) + len(test)
    for streaming in (False, True):
        large = load_large_images(str(root), streaming=streaming, **keywords)
        assert tuple(len(list(rows)) for rows in large) == (len(train), len(test))
    return len(train), len(test)


@pytest.mark.parametrize("word", WORDS)
def test_a_class_called_like_a_split_stays_in_its_own(tmp_path, word):
    classes = {"cup": 2, f"{word}-tube": 3}
    assert sizes(tree(tmp_path / "data", train=classes, test={"cup": 1, f"{word}-tube": 1})) == (5, 2)


@pytest.mark.parametrize("name", ["val", "dev", "Validation", "val2017", "test_1", "TEST"])
def test_what_the_test_images_folder_may_be_called(tmp_path, name):
    root = tree(tmp_path / "my test data", train={"val": 2, "cup": 3}, **{name: {"val": 1, "cup": 1}})
    assert sizes(root) == (5, 2)
    assert label_names(load_images(str(root))["test"]) == ["cup", "val"]


def test_folders_that_are_no_splits_are_left_out(tmp_path):
    one = {"cup": 1, "jar": 1}
    root = tree(tmp_path, train={"cup": 2, "jar": 3}, test=one, val=one, extra_test=one)
    assert sizes(root) == (5, 2)
    assert sizes(root, test_split="validation") == (5, 2)


def test_below_the_only_folder(tmp_path):
    root = tree(tmp_path / "test-data" / "pets", train={"test": 2, "cup": 1}, test={"test": 1, "cup": 1}).parent
    (root / "README.md").write_text("About these pets.")
    assert sizes(root) == (3, 2)


def test_classes_alone_are_for_training(tmp_path):
    root = tree(tmp_path, **{".": {"cup": 2, "test-tube": 3}})
    with pytest.raises(ValueError, match=r"has no split 'test': it has \['train'\]"):
        load_images(str(root))
    assert sizes_of_train(root) == 5


def sizes_of_train(root):
    return len(load_images(str(root), test_split="train")["train"])


def test_folders_behind_links(tmp_path):
    root = tree(tmp_path / "disk", a={"cup": 2, "test-tube": 3}, b={"cup": 1, "test-tube": 1})
    (tmp_path / "data").mkdir()
    for name, target in (("train", "a"), ("test", "b")):
        (tmp_path / "data" / name).symlink_to(root / target)
    assert sizes(tmp_path / "data") == (5, 2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # `datasets` leaves the file open
def test_labels_in_a_metadata_file(tmp_path):
    root = tree(tmp_path, train={"test shots": 3}, test={"test shots": 2})
    for split, count in (("train", 3), ("test", 2)):
        lines = ["file_name,label", *(f"test shots/{i}.png,{i % 2}" for i in range(count))]
        (root / split / "metadata.csv").write_text("\n".join(lines))
    assert sizes(root) == (3, 2)
    assert load_images(str(root))["train"]["labels"][:] == [0, 1, 0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("place", ["{split}", "{split}/test images"])
def test_archives(tmp_path, place):
    """With the labels in a file: `datasets` takes none from the folders in an archive."""
    root = tree(tmp_path / "files", train={"test": 4}, test={"test": 3})
    for split, count in (("train", 4), ("test", 3)):
        lines = ["file_name,label", *(f"test/{i}.png,{i % 2}" for i in range(count))]
        (root / split / "metadata.csv").write_text("\n".join(lines))
        shutil.make_archive(str(tmp_path / "data" / place.format(split=split)), "zip", root / split)
    assert sizes_of_stored(tmp_path / "data") == (4, 3)


def table(path, count, seed, names=("cup", "test")):
    images = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=list(names))})
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {"image": [Image.fromarray(image) for image in images], "label": [i % 2 for i in range(count)]}
    Dataset.from_dict(rows, features).to_parquet(path)


@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet", "test.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
        ("train/test-shots.parquet", "validation/train-shots.parquet"),
    ],
)
def test_tables(tmp_path, names):
    for seed, name in enumerate(names):
        table(tmp_path / name, 4 - seed, seed)
    assert sizes(tmp_path) == (4, 3)


def test_a_card_that_names_the_files(tmp_path):
    table(tmp_path / "train" / "a.parquet", 4, 0)
    table(tmp_path / "train" / "b.parquet", 3, 1)
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train/a.parquet\n"
    (tmp_path / "README.md").write_text(f"{card}  - split: test\n    path: train/b.parquet\n---\n")
    assert sizes(tmp_path) == (4, 3)


def test_tables_that_number_their_classes_differently_are_refused(tmp_path):
    """`datasets` reads all of them by the names of the first, so that a label is another class."""
    table(tmp_path / "train.parquet", 4, 0)
    table(tmp_path / "test.parquet", 3, 1, names=("test", "cup"))
    for load in (load_images, load_large_images, read_splits):
        with pytest.raises(
            ValueError, match=r"has the classes \['(cup|test)', .* in the column 'label', and .*\.parquet \['"
        ):
            load(str(tmp_path))


def test_folders_of_save_to_disk(tmp_path):
    table(tmp_path / "tables" / "train.parquet", 4, 0)
    table(tmp_path / "tables" / "test.parquet", 3, 1)
    tables = datasets.load_dataset(str(tmp_path / "tables"))
    tables.save_to_disk(tmp_path / "both")
    tables["train"].save_to_disk(tmp_path / "one")
    files = sorted(tmp_path.glob("*/**/*"))
    assert sizes(tmp_path / "both") == (4, 3)
    assert pixels(load_images(str(tmp_path / "both"))["test"]) == pixels(load_images(str(tmp_path / "tables"))["test"])
    assert {name: len(rows) for name, rows in read_splits(str(tmp_path / "one")).items()} == {"train": 4}
    assert sorted(tmp_path.glob("*/**/*")) == files  # nothing is cached there: a run knows its data by the files
    tables["test"] = tables["test"].cast_column("label", ClassLabel(names=["test", "cup"]))
    tables.save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match=r"has the classes \['test', 'cup'\] .*/train/.* \['cup', 'test'\]"):
        load_images(str(tmp_path / "other"))


def test_a_file_in_two_splits_is_refused(tmp_path):
    table(tmp_path / "train.parquet", 4, 0)
    table(tmp_path / "train-test.parquet", 3, 1)
    with pytest.raises(
        ValueError, match=r"train-test\.parquet would be in both 'train' and 'test'.*into separate folders"
    ):
        load_images(str(tmp_path))


@pytest.mark.parametrize("name", ["set [v2]", "a::b", "what?", "all*"])
def test_a_folder_whose_path_is_a_pattern_is_refused(tmp_path, name, monkeypatch):
    root = tree(tmp_path / name / "images", train={"cat": 3, "dog": 2}, test={"cat": 1, "dog": 1})
    (tmp_path / "plain").symlink_to(root)
    (root / "rows.jsonl").write_text('{"text": "a"}\n')
    message = r"in its path, which `datasets` reads as a pattern: rename the file or folder"
    for given in (root, tmp_path / "plain"):
        with pytest.raises(ValueError, match=message):
            load_images(str(given))
    with pytest.raises(ValueError, match=message):
        read_jsonl(root / "rows.jsonl")
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        load_images("images")


def test_classes_whose_names_are_patterns_are_read(tmp_path):
    names = {"a[1]": 2, "a*": 1, "50%": 1, "#1": 1, "a\nb": 1}
    both = load_images(str(tree(tmp_path / "images", train=names, test=names)))
    assert sorted(label_names(both["train"])) == sorted(names)
    assert (len(both["train"]), len(both["test"])) == (6, 6)


def test_a_class_whose_name_is_taken_for_an_archive_is_refused(tmp_path):
    root = tree(tmp_path / "images", train={"a::b": 2, "c": 1}, test={"c": 1})
    with pytest.raises(ValueError, match=r"images cannot be read: .*reads a name with '::' as a file in an archive"):
        load_images(str(root))
