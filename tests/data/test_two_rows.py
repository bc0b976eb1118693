"""Rows of two tokenizers that no batch is made of, whatever gives them: a dataset, a list, a stream."""

import pytest
import torch
from tokenizer_toys import byte_level, sentencepiece
from two_tokenizer_toys import rows, texts

from hfkd.data.pack_rows import pack_rows
from hfkd.data.text_collate import TokenCollator
from hfkd.data.token_bytes import token_bytes
from hfkd.data.two_collate import TwoTokenCollator
from hfkd.utils.token_groups import Pairing


def collator(pairing=Pairing("bytes"), unread=()):  # noqa: B008 - it is never written to
    own, other = byte_level(), sentencepiece()
    held = {"spelled": (token_bytes(own), token_bytes(other)), "unread": frozenset(unread)}
    return TwoTokenCollator.around(TokenCollator(own, labels_from_tokens=True), other, pairing, **held)


def without(row, *names):
    return {name: value for name, value in row.items() if name not in names}


def shifted(row):
    return row | {"teacher_input_ids": [(token + 1) % 330 for token in row["teacher_input_ids"]]}


REFUSED = {
    "a text": (
        lambda row: texts(1)[0],
        r"no 'input_ids'.*different tokenizers: .* by .*tokenize_for_both; convert a stream",
    ),
    "no labels": (lambda row: without(row, "labels"), "row 0 has no labels, but other columns of two tokenizers"),
    "no teacher_labels": (
        lambda row: without(row, "teacher_labels"),
        "row 0 has no teacher_labels, but other columns of two",
    ),
    "no teacher_input_ids": (
        lambda row: without(row, "teacher_input_ids"),
        "row 0 has no teacher_input_ids, but other columns of two",
    ),
    "a column cut alone": (
        lambda row: row | {"labels": row["labels"][:-1]},
        "input_ids, labels, byte_ends of row 0 have the lengths",
    ),
    "packed": (
        lambda row: row | {"seq_lengths": [2, len(row["input_ids"]) - 2]},
        "row 0 holds several documents.*leave position_ids and seq_lengths out",
    ),
    "packed by positions": (
        lambda row: row | {"position_ids": [0, 1, *range(len(row["input_ids"]) - 2)]},
        "row 0 holds several documents",
    ),
    "padded": (
        lambda row: row | {"attention_mask": [0] + [1] * (len(row["input_ids"]) - 1)},
        "row 0 has an attention_mask with 0",
    ),
    "another tokenizer's": (shifted, "the response of row 0 is .* in the student's tokens and .* in the teacher's"),
    "images": (lambda row: row | {"pixel_values": torch.zeros(3, 2, 2)}, "row 0 has pixel_values, but batches of two"),
}


@pytest.fixture(scope="module")
def row():
    return rows(1)[0]


@pytest.mark.parametrize("case", REFUSED)
def test_a_row_that_no_batch_can_be_made_of_is_named(row, case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        collator(unread=["pixel_values"])([make(row)])


def test_what_changes_nothing_is_taken(row):
    """A mask of ones, positions of one document, images that no network reads; labels by a mask, or none to score."""
    length, plain = len(row["input_ids"]), collator()([row])
    mask = [int(label >= 0) for label in row["labels"]]
    for other in (
        row | {"attention_mask": [1] * length, "position_ids": list(range(length)), "image": None},
        row | {"pixel_values": torch.zeros(3, 2, 2)},
        without(row, "labels") | {"completion_mask": mask},
    ):
        made = collator(unread=["image"])([other])
        for name in ("input_ids", "labels", "token_groups", "teacher_token_groups"):
            assert torch.equal(made[name], plain[name]), name
    alone = collator()([{"input_ids": row["input_ids"]}])
    assert torch.equal(alone["labels"][0], torch.tensor(row["input_ids"]))


@pytest.mark.parametrize("by", ["bytes", "position"])
@pytest.mark.parametrize("side", ["", "teacher_"])
def test_a_token_without_a_label_takes_its_group_along_and_no_other(by, side):
    """On either side: what is left are the groups that were there before, of the same tokens."""
    row = max(rows(16), key=lambda row: len(row["labels"]) - row["prompt_length"])
    made = collator(Pairing(by))([row])
    groups = [made[f"{one}token_groups"][0] for one in ("", "teacher_")]
    hole = int((made[f"{side}token_groups"][0] == 2).nonzero()[0])
    labels = list(row[f"{side}labels"])
    labels[hole] = -100
    found = collator(Pairing(by))([row | {f"{side}labels": labels}])
    for one, before in zip(("", "teacher_"), groups, strict=True):
        expected = torch.where(before > 2, before - 1, before).masked_fill(before == 2, -1)
        assert int(before.max()) > 3
        assert torch.equal(found[f"{one}token_groups"][0], expected)


def test_rows_of_two_tokenizers_are_not_packed():
    with pytest.raises(ValueError, match="the rows have teacher_input_ids.*packed rows have the student's tokens only"):
        pack_rows(rows(4), 64)
