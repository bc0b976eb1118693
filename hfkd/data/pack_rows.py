"""Packing of tokenised documents into rows with little padding. L tokens in a row."""

import logging
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from hfkd.data.teacher_columns import TEACHER_IDS
from hfkd.utils import formats

logger = logging.getLogger(__name__)

PACKED = ("input_ids", "labels")  # columns that are concatenated
IMAGES = ("pixel_values", "image", "video")  # as processors of transformers name their inputs


def pack_rows(rows: Dataset, max_length: int) -> Dataset:
    """Rows of `input_ids` and `labels` -> `input_ids`, `labels`, `seq_lengths`, `length`, `index`, of up to L tokens.

    `seq_lengths` are the lengths of the documents in a row. From them the collator restarts the positions, so that
    documents do not attend to each other, the first token of a document is not predicted, and each document is a
    sample: the loss of an optimizer step is the same as for unpacked documents. Documents are never truncated. They are
    placed by best fit, the longest first, and the rows depend only on their lengths. Raises ValueError where a document
    is longer than `max_length`, columns are missing, and for rows that have padding or several documents already.
    """
    if missing := [name for name in PACKED if name not in rows.column_names]:
        raise ValueError(
            f"rows to pack have no {' and no '.join(missing)} but {sorted(rows.column_names)}: tokenise them with "
            "hfkd.data.text.tokenize_dataset first"
        )
    if TEACHER_IDS in rows.column_names:
        raise ValueError(
            f"the rows have {TEACHER_IDS}, of another tokenizer or prompt than the student's, but packed rows have the "
            "student's tokens only: do not pack, or leave these columns out for a teacher that reads the same"
        )
    if found := sorted(name for name in rows.column_names if name.startswith(IMAGES)):
        raise ValueError(
            f"the rows have images in {found}, which packed rows do not keep: do not pack, or remove these columns to "
            "train on the texts only"
        )
    _refuse_padded_or_packed(rows)
    lengths = [len(ids) for ids in rows["input_ids"]]
    if max(lengths, default=0) > max_length:
        raise ValueError(
            f"row {int(np.argmax(lengths))} has {max(lengths)} tokens, but rows are packed to {max_length}, and "
            "documents are not truncated: tokenise them with this max_length, or increase it"
        )
    bins = best_fit(lengths, max_length)
    given = {"rows": rows.select_columns(list(PACKED)), "bins": [bins], "revision": formats.PACKED_ROWS}
    packed = Dataset.from_generator(_joined, gen_kwargs=given)
    share = sum(lengths) / (max_length * max(len(bins), 1))
    logger.info(
        "%d documents packed into %d rows of up to %d tokens, %.1f documents a row, which are %.0f %% full: a batch of "
        "as many rows holds more documents by that factor.",
        len(rows),
        len(bins),
        max_length,
        len(rows) / max(len(bins), 1),
        100 * share,
    )
    return packed


def _refuse_padded_or_packed(rows: Dataset) -> None:
    """Raise ValueError for rows with padding or several documents, which packing would not preserve."""
    found = {
        "attention_mask": ("an attention_mask with 0, which packed rows do not have", lambda mask: not all(mask)),
        "position_ids": ("position_ids that start again", lambda places: bool((np.diff(places) <= 0).any())),
        "seq_lengths": ("seq_lengths of several documents", lambda lengths: len(lengths) > 1),
    }
    for name, (what, wrong) in found.items():
        if name not in rows.column_names:
            continue
        number = next((i for i, values in enumerate(rows[name]) if values is not None and wrong(values)), None)
        if number is not None:
            raise ValueError(
                f"row {number} has {what}: padding would be learned, and several documents joined to one: pass each "
                "document in a separate row, without padding"
            )


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assign documents to rows by best fit, the longest first; returns the indices of the documents in each row.

    No document may be longer than `capacity`.
    """
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # free tokens -> rows
    rooms: list[int] = []  # the keys with at least one row, ascending
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(rooms, lengths[number])
        if at == len(rooms):
            row, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[at]
            row = with_room[room].pop()
            if not with_room[room]:
                del rooms[at]
        bins[row].append(number)
        left = room - lengths[number]
        if not with_room.setdefault(left, []):
            insort(rooms, left)
        with_room[left].append(row)
    return bins


def _joined(rows: Dataset, bins: list[list[list[int]]], revision: int) -> Iterator[dict[str, Any]]:
    """`bins` is in a nested list, because `datasets` would distribute a list among its processes.

    revision: only used in the cache's hash.
    """
    for index, numbers in enumerate(bins[0]):
        documents = rows[numbers]
        row = {name: [token for one in documents[name] for token in one] for name in PACKED}
        lengths = [len(ids) for ids in documents["input_ids"]]
        yield row | {"seq_lengths": lengths, "length": sum(lengths), "index": index}
