"""A fingerprint of the training rows, which a resumed run, or a later run in the same folder, is compared with."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from datasets import Dataset
from torch import Tensor

from hfkd.data.epochs import epoch_transform, first_epoch
from hfkd.data.first_rows import map_style
from hfkd.data.he_da import original_images
from hfkd.teachers.agreement import spread_rows
from hfkd.teachers.fingerprint import HASHED_WHOLE, file_columns, rows_fingerprint
from hfkd.utils.random_state import kept_random_state, seed_generators

SAMPLED = 32  # number of sampled rows, one from each of so many equal parts of the data


def data_hash(dataset: Any) -> str | None:
    """A hash of the training rows including labels; None for a stream, whose rows cannot be read without consuming
    them.

    A `datasets.Dataset` of up to 2 GiB is hashed whole, before its transform; if that is a function of the user's,
    `SAMPLED` transformed rows are hashed too. Of files whose paths are in the rows it is the names and sizes. Of a
    larger one, and of any other dataset with a length, only such a sample is hashed ("sample of 32 rows: ..."), so that
    a change in other rows is not noticed. Fields that differ when rows are read again, such as random crops, are left
    out.
    """
    rows = original_images(dataset)
    if not map_style(rows):
        return None
    whole = isinstance(rows, Dataset) and rows.data.table.nbytes <= HASHED_WHOLE
    how = "all rows, and the names and sizes of their files" if whole and file_columns(rows) else ""
    if whole and not _own_transform(rows):
        return f"{how}: {rows_fingerprint(rows)}" if how else rows_fingerprint(rows)
    if whole:
        number, sampled = _sample(rows)
        both = xxhash.xxh3_128_hexdigest(f"{rows_fingerprint(rows)} {sampled}".encode())
        return f"{how or 'all rows'}, and {number} as their transform makes them: {both}"
    if isinstance(rows, Dataset):
        # The fingerprint of `datasets` differs each time for data made by a function.
        rows = rows.with_format("arrow") if epoch_transform(rows) is not None else rows.with_format(None)
    number, sampled = _sample(rows)
    return f"sample of {number} rows: {sampled}"


def _own_transform(rows: Dataset) -> bool:
    """Whether rows pass through a transform function of the user's."""
    return rows.format["type"] == "custom" and epoch_transform(rows) is None


def _sample(rows: Any) -> tuple[int, str]:
    """The number of sampled rows, and a hash of their fields, without those that change when rows are read again.

    A field that changes in one row is left out of all: an image that is flipped by chance may come out twice the same.
    Both readings start from random states of their own, which are the same in each process.
    """
    numbers, readings = spread_rows(len(rows), SAMPLED), []
    with kept_random_state(), first_epoch(rows):
        for seed in range(2):
            seed_generators(seed)
            readings.append([_fields(rows, number) for number in numbers])
    pairs = list(zip(*readings, strict=True))
    changing = {name for one, other in pairs for name in one if one[name] != other.get(name)}
    digest = xxhash.xxh3_128(str(len(rows)).encode())
    for number, (row, _) in zip(numbers, pairs, strict=True):
        for name in sorted(row.keys() - changing):
            digest.update(f"{number} {name} {row[name]}".encode())
    return len(numbers), digest.hexdigest()


def comparable(one: str, other: str) -> bool:
    """Whether both hashes were made in the same way."""
    return one.rpartition(": ")[0] == other.rpartition(": ")[0]


def _fields(rows: Any, number: int) -> dict[str, str]:
    """A hash of each value of a row, by its name."""
    row = rows[number]
    values = row if isinstance(row, Mapping) else dict(enumerate(row)) if isinstance(row, (tuple, list)) else {0: row}
    hashed = {}
    for name, value in values.items():
        digest = xxhash.xxh3_128()
        for part in _parts(value):
            digest.update(part)
        hashed[str(name)] = digest.hexdigest()
    return hashed


def _parts(value: Any) -> Iterator[bytes]:
    """Type and content of a value; of an object of an unknown type, the type alone."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield f"{value.dtype}{value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield repr(name).encode()
            yield from _parts(inner)
    elif isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.dtype == object):
        yield f"[{len(value)}".encode()
        for inner in value:
            yield from _parts(inner)
    elif hasattr(value, "tobytes") and hasattr(value, "size"):  # a PIL image, a numpy scalar
        yield f"{getattr(value, 'mode', value.size)}{value.size}".encode()
        yield value.tobytes()
    elif isinstance(value, (str, bytes, int, float, bool, type(None))):
        yield repr(value).encode()
    else:
        yield type(value).__qualname__.encode()
