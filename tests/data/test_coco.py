"""Folders in COCO's format and data sets with objects: boxes, classes, splits and views."""

import json
from io import BytesIO

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from datasets import List as ListFeature
from PIL import ExifTags, Image
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2

from hfkd.data.box_arguments import BoxDataArguments
from hfkd.data.boxes import BoxCollator
from hfkd.data.coco import BACKGROUND, BoxTransform, load_coco

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}]


def write(folder, annotations, categories=CATEGORIES, split="train2017", images=2):
    (folder / split).mkdir(exist_ok=True)
    listed = [{"id": 10 + k, "file_name": f"{k}.png", "height": 20, "width": 30} for k in range(images)]
    for one in listed:
        Image.new("RGB", (30, 20), (one["id"], 0, 0)).save(folder / split / one["file_name"])
    content = {"images": listed, "annotations": annotations, "categories": categories}
    (folder / f"instances_{split}.json").write_text(json.dumps(content))


def box(values, category=1, image=10, **more):
    return {"image_id": image, "category_id": category, "bbox": values} | more


def load(folder, **more):
    return load_coco(folder / "train2017", folder / "instances_train2017.json", **more)


def test_boxes_become_corners_and_classes_keep_their_ids(tmp_path):
    write(tmp_path, [box([1, 2, 4, 6]), box([0, 0, 30, 20], 3, iscrowd=1)])
    found = load(tmp_path)
    assert found.label_names == (BACKGROUND, "cat", "unused_2", "dog")
    assert found.rows["boxes"][:] == [[[1, 2, 5, 8], [0, 0, 30, 20]], []]
    assert found.rows["labels"][:] == [[1, 3], []]
    assert found.rows["iscrowd"][:] == [[False, True], []]
    renumbered = load(tmp_path, renumber=True)
    assert renumbered.label_names == (BACKGROUND, "cat", "dog")
    assert renumbered.rows["labels"][:] == [[1, 2], []]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (box([1, 2, 0, 6]), r"image 0.png: the box \[1.0, 2.0, 1.0, 8.0\] .* has no size"),
        (box([20, 2, 11, 6]), "lies outside of the image, 20 pixels high and 30 wide"),
        (box([1, 2, 3, 4], 7), "the category 7 is not among the file's categories"),
    ],
)
def test_bad_annotations_are_named(tmp_path, annotation, message):
    write(tmp_path, [annotation])
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def change(folder, **parts):
    """Replaces parts of the annotations, which are files that other programs write."""
    file = folder / "instances_train2017.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))


def test_boxes_of_no_listed_image_are_missed(tmp_path, caplog):
    """Ids that are numbers in one place and texts in the other left all images without boxes."""
    write(tmp_path, [box([1, 2, 4, 6], image="10"), box([1, 2, 4, 6], image="11")])
    with pytest.raises(ValueError, match="annotations of the image '10' and others, but lists other images"):
        load(tmp_path)
    write(tmp_path, [box([1, 2, 4, 6]), box([1, 2, 4, 6], image=12)])
    assert load(tmp_path).rows["boxes"][:] == [[[1, 2, 5, 8]], []]
    assert "1 annotations of instances_train2017.json are of images that it does not list" in caplog.text


@pytest.mark.parametrize("kind", ["images", "categories"])
def test_ids_that_occur_twice(tmp_path, kind):
    """As in two files put together: each image had the boxes of both, and a class the name of another."""
    write(tmp_path, [box([1, 2, 4, 6])])
    twice = json.loads((tmp_path / "instances_train2017.json").read_text())[kind]
    change(tmp_path, **{kind: [*twice, twice[0] | {"name": "cow"}]})
    with pytest.raises(ValueError, match=f"has several {kind} with the id {twice[0]['id']}"):
        load(tmp_path)


def test_annotations_in_other_forms(tmp_path):
    write(tmp_path, [box([1, 2, 4, 6], "3", iscrowd="0")], [{"id": "3", "name": "dog"}])
    change(tmp_path, images=[{"id": 10, "file_name": "0.png"}])
    found = load(tmp_path).rows
    assert (found["boxes"][0], found["labels"][0], found["iscrowd"][0]) == ([[1, 2, 5, 8]], [3], [False])
    for values in (None, [], [1, 2, 3], ["a", 2, 3, 4]):
        write(tmp_path, [box(values, id=7)])
        with pytest.raises(ValueError, match=r"image 0.png: an annotation \(id 7\) has no usable box"):
            load(tmp_path)


def test_pictures_that_are_turned_without_another_size_are_spoken_of(tmp_path, caplog):
    write(tmp_path, [box([1, 2, 4, 6])], images=1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    Image.new("RGB", (30, 20)).save(tmp_path / "train2017" / "0.png", exif=exif)
    load(tmp_path)
    assert "1 images of instances_train2017.json are turned or mirrored by their EXIF orientation" in caplog.text


def test_bad_boxes_are_dropped_where_that_is_asked_for(tmp_path, caplog):
    write(tmp_path, [box([1, 2, 0, 6]), box([20, 2, 11, 6]), box([1, 1, 2, 2])])
    assert load(tmp_path, drop_bad_boxes=True).rows["boxes"][0] == [[1, 1, 3, 3]]
    assert "2 boxes of instances_train2017.json" in caplog.text


def test_category_0_and_files_that_are_not_there(tmp_path):
    write(tmp_path, [], [{"id": 0, "name": "cat"}])
    with pytest.raises(ValueError, match="has a category 0, which detectors use for the background"):
        load(tmp_path)
    assert load(tmp_path, renumber=True).label_names == (BACKGROUND, "cat")
    (tmp_path / "train2017" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"names 1.png, which is not in"):
        load(tmp_path, renumber=True)
    with pytest.raises(ValueError, match="is not an instances file in COCO's format"):
        load_coco(tmp_path, tmp_path / "train2017" / "0.png")


def test_pictures_of_another_size_than_the_annotations_say(tmp_path):
    """Smaller boxes in larger pictures are all inside, and in other places."""
    write(tmp_path, [box([1, 2, 4, 6])], images=1)
    file = tmp_path / "train2017" / "0.png"
    Image.new("RGB", (60, 40)).save(file)
    with pytest.raises(ValueError, match="0.png is 40 pixels high and 60 wide, and instances_train2017.json says 20"):
        load(tmp_path)
    turned = Image.new("RGB", (20, 30)).getexif()
    turned[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (20, 30)).save(file, exif=turned)
    shown = load(tmp_path).rows.with_transform(BoxTransform())[0]["pixel_values"]
    assert shown.shape == (3, 20, 30)
    file.write_bytes(b"none")
    with pytest.raises(ValueError, match="0.png cannot be read as a picture"):
        load(tmp_path)


def test_the_two_splits_must_have_the_same_classes(tmp_path):
    write(tmp_path, [box([1, 2, 4, 6])])
    write(tmp_path, [box([1, 2, 4, 6])], [{"id": 1, "name": "dog"}, {"id": 3, "name": "cat"}], "val2017")
    with pytest.raises(ValueError, match="'cat' in one is 'dog' in the other"):
        BoxDataArguments(str(tmp_path)).load()


def test_views_are_drawn_from_seed_epoch_and_row(tmp_path):
    write(tmp_path, [box([1, 2, 4, 6], image=10 + k) for k in range(16)], images=16)
    write(tmp_path, [box([1, 2, 4, 6])], split="val2017")
    train, test, names = BoxDataArguments(str(tmp_path), max_test_images=1).load(seed=1)
    transform = train.format["format_kwargs"]["transform"]
    assert names == transform.label_names
    first = [row["boxes"].tolist() for row in train]
    assert first == [row["boxes"].tolist() for row in train]
    assert {tuple(boxes[0]) for boxes in first} == {(1, 2, 5, 8), (25, 2, 29, 8)}
    transform.set_epoch(1)
    assert first != [row["boxes"].tolist() for row in train]
    assert [row["boxes"].tolist() for row in test] == [[[1, 2, 5, 8]]]


def test_a_data_set_with_objects(tmp_path):
    objects = {
        "bbox": ListFeature(ListFeature(Value("float32"))),
        "category": ListFeature(ClassLabel(names=["a", "b"])),
    }
    features = Features({"image": ImageFeature(), "objects": objects})
    rows = {
        "image": [Image.new("RGB", (30, 20))] * 2,
        "objects": [{"bbox": [[1, 2, 4, 6]], "category": [1]}, {"bbox": [], "category": []}],
    }
    part = Dataset.from_dict(rows, features)
    for split in ("train", "validation"):
        part.to_parquet(tmp_path / f"{split}.parquet")
    assert DatasetDict({"train": part})
    train, _, names = BoxDataArguments(str(tmp_path), flip=False).load()
    assert names == (BACKGROUND, "a", "b")
    assert train[0]["boxes"].tolist() == [[1, 2, 5, 8]]
    assert [train[k]["labels"] for k in (0, 1)] == [[2], []]


def write_objects(folder, categories, kind="int64"):
    """A dataset whose images have one box of each of the categories, or None: no list of boxes."""
    objects = {"bbox": ListFeature(ListFeature(Value("float32"))), "category": ListFeature(Value(kind))}
    for split, rows in zip(("train", "validation"), categories, strict=True):
        found = [None if one is None else {"bbox": [[20, 2, 9, 6]] * len(one), "category": one} for one in rows]
        features = Features({"image": ImageFeature(), "objects": objects})
        images = [Image.new("RGB", (30, 20))] * len(rows)
        Dataset.from_dict({"image": images, "objects": found}, features).to_parquet(folder / f"{split}.parquet")


def test_pictures_of_a_data_set_stay_in_its_files(tmp_path):
    """Not in memory: COCO's are 19 GB."""
    write_objects(tmp_path, ([[0]], [[0]]))
    train, test, _ = BoxDataArguments(str(tmp_path), flip=False).load()
    assert train.cache_files
    assert test.cache_files
    assert train[0]["pixel_values"].shape == (3, 20, 30)


def test_boxes_of_a_data_set_are_in_the_picture_as_it_is_shown(tmp_path):
    """A file whose EXIF orientation turns it onto its side."""
    write_objects(tmp_path, ([[0]], [[0]]))
    exif, file = Image.Exif(), BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (20, 30)).save(file, "JPEG", exif=exif)
    for split in ("train", "validation"):
        rows = Dataset.from_parquet(str(tmp_path / f"{split}.parquet"))
        features = rows.features
        turned = [row | {"image": {"bytes": file.getvalue(), "path": None}} for row in rows]
        Dataset.from_list(turned, features).to_parquet(tmp_path / f"{split}.parquet")
    train, _, _ = BoxDataArguments(str(tmp_path), flip=False).load()
    assert train[0]["pixel_values"].shape == (3, 20, 30)
    assert train[0]["boxes"].tolist() == [[20, 2, 29, 8]]


def test_numbers_of_objects_need_not_all_be_in_both_splits(tmp_path):
    write_objects(tmp_path, ([[0, 4], None], [[1], []]))
    train, _, names = BoxDataArguments(str(tmp_path), flip=False).load()
    assert names == (BACKGROUND, "0", "1", "2", "3", "4")
    assert [train[k]["labels"] for k in (0, 1)] == [[1, 5], []]


@pytest.mark.parametrize(
    ("category", "kind", "more", "message"),
    [
        (-1, "int64", {}, "row 0 has a box of the category -1: number the categories from 0 on"),
        ("cat", "string", {}, r"objects.category holds Value\(.*string.*: write it with a ClassLabel feature"),
        (0, "int64", {"box_format": "xyxy"}, r"has no size; correct it, set box_format \(it is 'xyxy'\), or set drop"),
    ],
)
def test_objects_that_are_none(tmp_path, category, kind, more, message):
    write_objects(tmp_path, ([[category]], [[category]]), kind)
    with pytest.raises(ValueError, match=message):
        BoxDataArguments(str(tmp_path), **more).load()


def test_coco_as_torchvision_reads_it(data_dir):
    folder = data_dir / "coco128"
    if not folder.is_dir():
        pytest.skip("no coco128 in the folder of real data that HFKD_DATA names")
    files = folder / "train2017", folder / "instances_train2017.json"
    theirs = wrap_dataset_for_transforms_v2(
        CocoDetection(*map(str, files)), target_keys=("image_id", "boxes", "labels")
    )
    ours = load_coco(*files)
    rows = ours.rows.with_transform(BoxTransform(label_names=ours.label_names))
    assert len(ours.label_names) == 91
    order = {row["path"].rpartition("/")[2]: k for k, row in enumerate(ours.rows["image"][:])}
    for k in range(0, 128, 16):
        name = theirs._dataset.coco.loadImgs(theirs._dataset.ids[k])[0]["file_name"]
        mine, its = BoxCollator()([rows[order[name]]]), BoxCollator()([theirs[k]])
        assert torch.equal(mine["pixel_values"], its["pixel_values"])
        assert torch.equal(mine["labels"], its["labels"])
        torch.testing.assert_close(mine["boxes"], its["boxes"])
