"""Which rows a run trains on, in a line: what a later run in its folder, or one that resumes it, is compared with."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from datasets import Dataset
from torch import Tensor

from hfkd.data.epochs import epoch_transform
from hfkd.data.first_rows import map_style
from hfkd.data.he_da import original_images
from hfkd.teachers.agreement import spread_rows
from hfkd.teachers.fingerprint import HASHED_WHOLE, rows_fingerprint
from hfkd.utils.random_state import kept_random_state

SAMPLED = 32  # rows, one in each of as many equal parts of the data


def data_hash(dataset: Any) -> str | None:
    """A hash of the training rows, labels and all; None for a stream, whose rows cannot be looked at without spending.

    A `datasets.Dataset` of up to 2 GiB is hashed whole, before any transform; where that is a function of the user's,
    so are `SAMPLED` rows as it makes them. Of a larger one, and of any other dataset with a length, those rows alone
    are: "sample of 32 rows: ...". Rows that a sample does not meet may differ. What is another each time it is read,
    such as a random crop, is left out.
    """
    rows = original_images(dataset)
    if not map_style(rows):
        return None
    whole = isinstance(rows, Dataset) and rows.data.table.nbytes <= HASHED_WHOLE
    if whole and not _own_transform(rows):
        return rows_fingerprint(rows)
    if whole:
        number, sampled = _sample(rows)
        both = xxhash.xxh3_128_hexdigest(f"{rows_fingerprint(rows)} {sampled}".encode())
        return f"all rows, and {number} as their transform makes them: {both}"
    if isinstance(rows, Dataset):
        # What `datasets` itself calls such data is another name each time, where a function made it.
        rows = rows.with_format("arrow") if epoch_transform(rows) is not None else rows.with_format(None)
    number, sampled = _sample(rows)
    return f"sample of {number} rows: {sampled}"


def _own_transform(rows: Dataset) -> bool:
    """Whether rows are made by a function of the user's."""
    return rows.format["type"] == "custom" and epoch_transform(rows) is None


def _sample(rows: Any) -> tuple[int, str]:
    """How many rows were looked at, and a hash of what is the same of them each time they are read."""
    numbers = spread_rows(len(rows), SAMPLED)
    with kept_random_state():
        once, again = ([_fields(rows, number) for number in numbers] for _ in range(2))
    digest = xxhash.xxh3_128(str(len(rows)).encode())
    for number, first, second in zip(numbers, once, again, strict=True):
        for name in sorted(first.keys() & second.keys()):
            if first[name] == second[name]:
                digest.update(f"{number} {name} {first[name]}".encode())
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
    """The kind and the content of a value; of an object that nothing is known of, its kind alone."""
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
    elif hasattr(value, "tobytes") and hasattr(value, "size"):  # an image of PIL, a number of numpy
        yield f"{getattr(value, 'mode', value.size)}{value.size}".encode()
        yield value.tobytes()
    elif isinstance(value, (str, bytes, int, float, bool, type(None))):
        yield repr(value).encode()
    else:
        yield type(value).__qualname__.encode()
