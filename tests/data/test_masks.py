"""Masks as files, arrays and colours; views of image and mask alike, the same for (seed, epoch, index)."""

import io
import json
import time

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from hfkd.data.mask_arguments import MaskDataArguments
from hfkd.data.masks import MaskTransform, load_masks, mask_ids, read_label_names, read_palette

PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def shaded(height=8, width=12):
    """An image whose pixels say where they are, and a mask that says the same: class = row + column, below 19."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 10, columns * 10, np.full_like(rows, 200)], -1).astype(np.uint8)
    return image, (rows + columns).astype(np.uint8)


def batch(images, masks, index=None):
    return {"image": images, "labels": masks, "index": list(range(len(images))) if index is None else index}


def file(array, mode=None):
    buffer = io.BytesIO()
    (Image.fromarray(array) if mode is None else mode(array)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def indexed(array):
    picture = Image.fromarray(array)
    picture = picture.convert("P")
    picture.putdata(array.flatten().tolist())
    picture.putpalette([number % 256 for number in range(768)])
    return picture


def test_masks_of_every_kind_are_read():
    _, ids = shaded()
    for value in (ids, ids.tolist(), torch.from_numpy(ids), Image.fromarray(ids), file(ids), file(ids, indexed)):
        assert torch.equal(mask_ids(value, 0).long(), torch.from_numpy(ids).long())
    assert mask_ids(file(ids)["bytes"], 0).dtype == torch.uint8
    wide = Image.fromarray(ids.astype(np.int32) + 300)
    assert mask_ids(wide, 0)[0, 0] == 300


def test_colours_need_a_palette(tmp_path):
    colours = np.array([[[128, 0, 0], [0, 0, 0]], [[0, 128, 0], [128, 0, 0]]], dtype=np.uint8)
    with pytest.raises(
        ValueError, match=r"the mask of row 7 is in colour, with 3 colours such as \(0, 0, 0\): pass the class"
    ):
        mask_ids(Image.fromarray(colours), 7)
    path = tmp_path / "palette.json"
    path.write_text(json.dumps({"128,0,0": 0, "0,128,0": 1, "0,0,0": 255}))
    assert mask_ids(colours, 7, read_palette(path)).tolist() == [[0, 255], [1, 0]]
    colours[0, 0] = (128, 0, 1)
    with pytest.raises(ValueError, match=r"row 7 has the colour \(128, 0, 1\), which is not in the palette"):
        mask_ids(colours, 7, read_palette(path))


def test_colours_of_a_large_mask_are_read_in_time():
    """As rows of three numbers, its pixels were sorted for four seconds, again in each epoch."""
    classes = torch.randint(0, 4, (1500, 2000), generator=torch.Generator().manual_seed(0))
    shades = [(0, 0, 255), (0, 255, 0), (128, 0, 0), (255, 255, 255)]
    colours = torch.tensor(shades, dtype=torch.uint8)[classes].numpy()
    start = time.process_time()
    found = mask_ids(colours, 0, {shade: 3 - number for number, shade in enumerate(shades)})
    assert time.process_time() - start < 2
    assert torch.equal(found, 3 - classes)


def test_a_palette_is_read_for_masks_with_their_own_palette_and_grey_ones(tmp_path):
    """Their numbers are those of the file's palette, and need not be those of the classes."""
    colours, grey = Image.new("P", (2, 1)), np.array([[0, 128]], dtype=np.uint8)
    colours.putpalette([0, 0, 0, 128, 0, 0])
    colours.putpixel((1, 0), 1)
    red, shades = {(0, 0, 0): 255, (128, 0, 0): 5}, {(0,) * 3: 255, (128,) * 3: 5}
    for value, palette in ((colours, red), (grey, shades), (Image.fromarray(grey), shades), (file(grey), shades)):
        assert mask_ids(value, 0, palette).tolist() == [[255, 5]]
    assert mask_ids(Image.fromarray(grey).convert("1"), 0, {(0,) * 3: 1, (255,) * 3: 0}).shape == (1, 2)
    with pytest.raises(ValueError, match=r"row 0 has the colour \(128, 0, 0\), which is not in the palette"):
        mask_ids(colours, 0, shades)


@pytest.mark.parametrize("content", ["[", "[1]", '{"1,2": 0}', '{"1,2,3": 256}', '{"a,b,c": 0}'])
def test_what_is_no_palette(tmp_path, content):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ValueError, match="p.json is not a palette"):
        read_palette(tmp_path / "p.json")


@pytest.mark.parametrize("content", ['{"0": "sky"}', '{"0": "sky", "2": "road"}', "7", "{"])
def test_what_names_no_classes(tmp_path, content):
    (tmp_path / "n.json").write_text(content)
    with pytest.raises(ValueError, match=r"n.json (names no classes|has the class ids)"):
        read_label_names(tmp_path / "n.json")


def test_masks_that_were_compressed_are_refused():
    """Between classes 0 and 9 JPEG makes pixels of others."""
    ids, buffer = np.kron([[0, 9], [9, 0]], np.ones((5, 5))).astype(np.uint8), io.BytesIO()
    Image.fromarray(ids).save(buffer, "JPEG")
    assert set(np.asarray(Image.open(buffer)).flatten().tolist()) > {0, 9}
    with pytest.raises(ValueError, match="the mask of row 4 cannot be used: it is a JPEG file"):
        mask_ids(buffer.getvalue(), 4)


@pytest.mark.parametrize("value", [None, b"no picture", np.zeros((3, 4, 5)), np.zeros((3, 4))])
def test_masks_that_cannot_be_used_name_their_row(value):
    with pytest.raises(ValueError, match="the mask of row 3"):
        mask_ids(value, 3)


def test_image_and_mask_are_cut_scaled_and_mirrored_alike():
    """Where the picture is neither scaled nor padded, each pixel's colour says its class; and elsewhere about so."""
    image, ids = shaded(16, 24)
    size = (16, 24)
    for scale, distinct in (((1.0, 1.0), 2), ((0.5, 2.0), 8)):
        transform = MaskTransform(size, **PLAIN, augment=True, scale=scale, seed=3)
        made = transform(batch([image] * 8, [ids] * 8))
        seen, labels = torch.stack(made["pixel_values"]), torch.stack(made["labels"])
        assert seen.shape == (8, 3, *size)
        assert labels.shape == (8, *size)
        padded = (seen[:, 2] == 0) & (labels == 255)
        rows, columns = (seen[:, k] * 255 / 10 for k in (0, 1))
        off = (rows + columns - labels).abs()[~padded & (labels != 255)]
        assert len(off) > 100
        assert off.quantile(0.9) < (1e-3 if scale == (1.0, 1.0) else 2.0)
        assert len({tuple(view.flatten().tolist()) for view in labels}) == distinct


def test_views_depend_on_seed_epoch_and_row_alone():
    image, ids = shaded(16, 24)
    transform = MaskTransform((8, 12), **PLAIN, augment=True, seed=1)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    whole = transform(batch([image] * 4, [ids] * 4))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    alone = transform(batch([image], [ids], [2]))
    assert torch.equal(alone["pixel_values"][0], whole["pixel_values"][2])
    assert torch.equal(alone["labels"][0], whole["labels"][2])
    later = transform.at_epoch(1)(batch([image], [ids], [2]))
    other = MaskTransform((8, 12), **PLAIN, augment=True, seed=2)(batch([image], [ids], [2]))
    assert not torch.equal(later["labels"][0], alone["labels"][0])
    assert not torch.equal(other["labels"][0], alone["labels"][0])


def test_to_evaluate_both_are_resized_or_left_as_they_are():
    image, ids = shaded()
    made = MaskTransform(**PLAIN)(batch([image], [ids]))
    assert torch.equal(made["labels"][0], torch.from_numpy(ids).long())
    assert torch.equal((made["pixel_values"][0] * 255).round().byte(), torch.from_numpy(image).permute(2, 0, 1))
    half = MaskTransform((4, 6), **PLAIN, augment=True).clean()(batch([image], [ids]))
    assert set(half["labels"][0].flatten().tolist()) <= set(ids.flatten().tolist())


def test_class_0_may_stand_for_none():
    image, _ = shaded(1, 4)
    made = MaskTransform(**PLAIN, reduce_labels=True)(batch([image], [np.array([[0, 1, 2, 255]], dtype=np.uint8)]))
    assert made["labels"][0].tolist() == [[255, 0, 1, 255]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": True}, "set size="),
        ({"scale": (2.0, 1.0)}, r"scale=\(2.0, 1.0\) must be"),
        ({"std": (0.0, 1.0, 1.0)}, "std"),
    ],
)
def test_settings_that_make_no_views(settings, message):
    with pytest.raises(ValueError, match=message):
        MaskTransform(**settings)


def test_a_mask_of_another_size_than_its_image_is_refused():
    image, ids = shaded()
    with pytest.raises(ValueError, match=r"row 0 has a mask of \(8, 11\) pixels for an image of \(8, 12\)"):
        MaskTransform(**PLAIN)(batch([image], [ids[:, :-1]]))


def stored(folder, column="annotation", names=None):
    image, ids = shaded()
    features = Features({"image": ImageFeature(), column: ImageFeature(), "note": Value("string")})
    rows = {"image": [file(image)] * 3, column: [file(ids % 3)] * 3, "note": ["x"] * 3}
    for split in ("train", "test"):
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    if names is not None:
        (folder / "id2label.json").write_text(json.dumps(dict(enumerate(names))))
    return str(folder)


def test_a_folder_with_a_column_of_each(tmp_path):
    args = MaskDataArguments(dataset_name=stored(tmp_path, names=["a", "b", "c"]), image_size=[4, 6], max_test_images=2)
    train, test = args.load(seed=1)
    assert (len(train), len(test), args.classes, args.label_names) == (3, 2, 3, ("a", "b", "c"))
    assert train[0]["pixel_values"].shape == (3, 4, 6)
    assert test[1]["labels"].shape == (4, 6)
    assert test[1]["index"] == 1


def test_what_names_no_column_or_classes(tmp_path):
    folder = stored(tmp_path, "outline")
    with pytest.raises(ValueError, match="no label column among .*'outline'.*; pass label_column="):
        load_masks(folder)
    with pytest.raises(ValueError, match="the classes of the masks of .* are not known: pass --id2label"):
        MaskDataArguments(dataset_name=folder).classes  # noqa: B018
    assert MaskDataArguments(dataset_name=folder, num_labels=3).classes == 3
    (tmp_path / "id2label.json").write_text('["a", "b"]')
    with pytest.raises(ValueError, match="names 2 classes, but num_labels=3"):
        MaskDataArguments(dataset_name=folder, num_labels=3).classes  # noqa: B018
