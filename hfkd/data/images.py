"""Image classification datasets from any Hub id or local folder, decoded once to uint8 in Arrow.

H height, W width.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import ExifTags, Image, ImageOps

from hfkd.data.columns import LABEL_COLUMNS, find_column
from hfkd.data.splits import load_splits
from hfkd.data.transforms import pack_pixels, packed_size
from hfkd.utils import formats

# Usual column names, in the order of the search.
IMAGE_COLUMNS = ("img", "image", "pixel_values", "images", "jpg", "png")
TEST_SPLITS = ("test", "validation", "valid", "val", "dev")


def load_images(
    name_or_path: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    name: str | None = None,
) -> DatasetDict:
    """Load `train` and `test` splits with the columns `pixels`, `labels` and `index`.

    `pixels` holds a uint8 RGB image as bytes (`transforms.pack_pixels`), decoded once and kept in the `datasets` cache;
    `index` is the row number. Greyscale images become RGB, and alpha channels are dropped. All images are resized and
    centre cropped to `image_size`, by default the size of the first training image. Columns and splits are found by
    their usual names, or given. `image_hw(dataset)` is the size, `label_names(dataset)` the class names. Raises
    ValueError for a missing column or split, an empty split, labels that are not class ids, or a broken image.
    """
    train, test = pick_splits(load_splits(name_or_path, name), name_or_path, train_split, test_split)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    train = decode(train, image_column, label_column, size)
    test = decode(test, image_column, label_column, image_hw(train))
    return DatasetDict({"train": train, "test": test})


def pick_splits(loaded: Any, source: str, train_split: str, test_split: str | None) -> tuple[Any, Any]:
    """The two splits by name, the test split by its usual names if not given. Raises ValueError for a missing split."""
    test_split = test_split or next((s for s in TEST_SPLITS if s in loaded), "test")
    for split, argument in ((train_split, "train_split"), (test_split, "test_split")):
        if split not in loaded:
            raise ValueError(f"{source} has no split {split!r}: it has {list(loaded)}; pass {argument}=")
    return loaded[train_split], loaded[test_split]


def decode(
    dataset: Dataset,
    image_column: str | None = None,
    label_column: str | None = None,
    size: tuple[int, int] | None = None,
) -> Dataset:
    """One split: images decoded to `pixels`, labels named `labels`, rows numbered in `index`."""
    if len(dataset) == 0:
        raise ValueError("the dataset is empty: pass one with images")
    image_column = find_column(dataset, image_column, IMAGE_COLUMNS, "image_column")
    label_column = find_column(dataset, label_column, LABEL_COLUMNS, "label_column")
    labels = dataset.features[label_column]
    check_labels(labels, label_column)
    # Decoded one by one, so that an error can name the row.
    if isinstance(dataset.features[image_column], ImageFeature):
        dataset = dataset.cast_column(image_column, ImageFeature(decode=False))
    size = size or picture(dataset[0][image_column], 0).size[::-1]
    features = Features({"pixels": Value("binary"), "labels": labels, "index": Value("int64")})
    return dataset.map(
        _decode_batch,
        batched=True,
        batch_size=512,
        with_indices=True,
        features=features,
        remove_columns=dataset.column_names,
        fn_kwargs={
            "image_column": image_column,
            "label_column": label_column,
            "size": tuple(size),
            "layout": formats.PIXELS,
        },
        desc="Decoding images",
    )


def as_stored(rows: Any, image_column: str | None, label_column: str | None, usual: tuple[str, ...]) -> Any:
    """The columns `image` and `labels`, whose pictures a transform decodes, and, unless streamed, `index`.

    Columns that are not given are found by their usual names, those of the labels by `usual`.
    """
    image_column = find_column(rows, image_column, IMAGE_COLUMNS, "image_column")
    names = {image_column: "image", find_column(rows, label_column, usual, "label_column"): "labels"}
    rows = rows.select_columns(list(names))
    rows = rows.rename_columns({old: new for old, new in names.items() if old != new})
    for column in names.values():
        if isinstance(rows.features[column], ImageFeature):  # not decoded here, so that an error can name the row
            rows = rows.cast_column(column, ImageFeature(decode=False))
    return rows.add_column("index", np.arange(len(rows))) if isinstance(rows, Dataset) else rows


def check_labels(feature: Any, column: str) -> None:
    """Raise ValueError unless the feature holds class ids."""
    if not isinstance(feature, ClassLabel) and not (isinstance(feature, Value) and "int" in feature.dtype):
        raise ValueError(f"column {column!r} holds {feature} instead of class ids: name another label column")


def _decode_batch(
    batch: dict[str, list[Any]],
    indices: list[int],
    image_column: str,
    label_column: str,
    size: tuple[int, int],
    layout: int,
) -> dict[str, list[Any]]:
    pictures = (picture(value, row) for value, row in zip(batch[image_column], indices, strict=True))
    pixels = [pack_pixels(np.asarray(p if p.size[::-1] == size else _fit(p, size))) for p in pictures]
    for label, row in zip(batch[label_column], indices, strict=True):
        if label is None:
            raise ValueError(f"row {row} has no label: remove rows without labels")
    return {"pixels": pixels, "labels": batch[label_column], "index": indices}


def picture(value: Any, row: int) -> Image.Image:
    """An RGB image from the bytes or path of a file, as `datasets` stores it, or from nested lists [H, W(, 3)]."""
    with _naming(value, row):
        if isinstance(value, bytes):
            value = {"bytes": value, "path": None}
        if isinstance(value, dict) and value["bytes"] is None and os.path.isfile(value["path"]):
            value = {**value, "bytes": Path(value["path"]).read_bytes()}  # Pillow does not close broken files
        return in_rgb(ImageFeature().decode_example(value) if isinstance(value, dict) else _from_array(value))


def picture_hw(value: Any, row: int) -> tuple[int, int]:
    """Height and width of `picture`, of bytes without decoding their pixels."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        width, height = picture(value, row).size
        return height, width
    with _naming(value, row), Image.open(BytesIO(content)) as found:
        refuse_deep(found)
        return shown_hw(found)[0]


def shown_hw(picture: Image.Image) -> tuple[tuple[int, int], int]:
    """Height and width of a picture as it is shown, and its EXIF orientation: from 5 on it is turned onto its side."""
    width, height = picture.size
    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    return ((width, height) if orientation > 4 else (height, width)), orientation


@contextmanager
def _naming(value: Any, row: int) -> Iterator[None]:
    """Context in which errors of a picture name its row."""
    try:
        if value is None:
            raise ValueError("there is none")
        yield
    except (OSError, ValueError, TypeError, KeyError, SyntaxError, Image.DecompressionBombError) as error:
        path = value.get("path") if isinstance(value, dict) else None
        where = f"row {row} ({path})" if path else f"row {row}"
        raise ValueError(f"the image in {where} cannot be used: {error}; replace it, or remove the row") from error


def in_rgb(picture: Image.Image) -> Image.Image:
    """ValueError for what `refuse_deep` refuses."""
    refuse_deep(picture)
    return picture.convert("RGB")


def refuse_deep(picture: Image.Image) -> None:
    """ValueError for pixels of more than 8 bits: Pillow makes 255 of all that are above."""
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"it has 16-bit or float pixels (mode {picture.mode}), which would be clipped in RGB")


def _from_array(value: Any) -> Image.Image:
    array = np.asarray(value)
    if array.dtype.kind not in "ui" or array.min() < 0 or array.max() > 255:
        raise ValueError("its values are not integers from 0 to 255")
    return Image.fromarray(array.astype(np.uint8))


def _fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to cover `size` with the same aspect ratio, then crop the centre."""
    return ImageOps.fit(picture, size[::-1], method=Image.Resampling.BICUBIC)


def image_hw(dataset: Dataset) -> tuple[int, int]:
    """The height and width of the images of a decoded dataset."""
    return packed_size(dataset.with_format(None)[0]["pixels"])
