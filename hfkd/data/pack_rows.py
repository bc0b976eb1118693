"""Tokenised documents -> rows that hold several of them, with little padding. L tokens of a row."""

import logging
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

logger = logging.getLogger(__name__)

PACKED = ("input_ids", "labels")  # what is put end to end
IMAGES = ("pixel_values", "image", "video")  # as processors of transformers name their inputs


def pack_rows(rows: Dataset, max_length: int) -> Dataset:
    """Rows of `input_ids` and `labels` -> `input_ids`, `labels`, `seq_lengths`, `length`, `index`, of up to L tokens.

    `seq_lengths` are the tokens of each document of a row; by them the collator starts the positions anew, so that
    documents do not see each other, nothing predicts another document's first token, and each document is a sample:
    the loss of an optimizer step is that of the same documents in rows of their own. Documents are never cut. They are
    placed best fit, the longest first, and the rows depend on their lengths alone.
    Raises ValueError where a document is longer than `max_length`, columns are missing, and for rows that have padding
    or several documents already.
    """
    if missing := [name for name in PACKED if name not in rows.column_names]:
        raise ValueError(
            f"rows to be packed have no {' and no '.join(missing)}: they have {sorted(rows.column_names)}; tokenise "
            "them with hfkd.data.text.tokenize_dataset first"
        )
    if "teacher_input_ids" in rows.column_names:
        raise ValueError(
            "the rows have teacher_input_ids, of a teacher with a tokenizer of its own, and packed rows have the "
            "student's tokens alone: give the trainer the rows as they are, or use a student with the teacher's "
            "tokenizer"
        )
    if found := sorted(name for name in rows.column_names if name.startswith(IMAGES)):
        raise ValueError(
            f"the rows have {found}, of images beside their texts, which packed rows do not keep: train on the rows as "
            "they are, or remove these columns if the texts are to be learned without images"
        )
    _refuse_padded_or_packed(rows)
    lengths = [len(ids) for ids in rows["input_ids"]]
    if max(lengths, default=0) > max_length:
        raise ValueError(
            f"row {int(np.argmax(lengths))} has {max(lengths)} tokens, and rows are packed to {max_length}: documents "
            "are not cut; tokenise them with that max_length, or raise it"
        )
    bins = best_fit(lengths, max_length)
    packed = Dataset.from_generator(_joined, gen_kwargs={"rows": rows.select_columns(list(PACKED)), "bins": [bins]})
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
    """Raise ValueError for a row with more in it than one document's tokens: joined to others nothing would tell."""
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
                f"row {number} has {what}: its padding would be learned, or its documents become one; give pack_rows "
                "each document in a row of its own, without padding"
            )


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which documents share a row: each, the longest first, goes where it leaves the least room; numbers of documents.

    None may be longer than `capacity`.
    """
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # so many tokens left: those rows
    rooms: list[int] = []  # the keys that have a row, ascending
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


def _joined(rows: Dataset, bins: list[list[list[int]]]) -> Iterator[dict[str, Any]]:
    """`bins` in a list of its own: `datasets` would share out a list among its processes."""
    for index, numbers in enumerate(bins[0]):
        documents = rows[numbers]
        row = {name: [token for one in documents[name] for token in one] for name in PACKED}
        lengths = [len(ids) for ids in documents["input_ids"]]
        yield row | {"seq_lengths": lengths, "length": sum(lengths), "index": index}
