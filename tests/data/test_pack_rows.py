"""Packed rows hold each document once and whole, and train as the documents do in rows of their own."""

import logging
import random

import pytest
from datasets import Dataset
from text_toys import TokenRows, language_model, taught_model, token_dataset, tokenizer
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.data.pack_rows import best_fit, pack_rows
from hfkd.data.text_collate import TokenCollator


def documents(packed):
    """The documents of packed rows: (ids, labels)."""
    found = []
    for row in packed:
        start = 0
        for length in row["seq_lengths"]:
            part = slice(start, start + length)
            found.append((tuple(row["input_ids"][part]), tuple(row["labels"][part])))
            start += length
        assert start == len(row["input_ids"]) == len(row["labels"]) == row["length"]
    return found


def test_every_document_is_there_once_and_whole(caplog):
    rows = token_dataset(40)
    with caplog.at_level(logging.INFO, "hfkd"):
        packed = pack_rows(rows, 20)
    wanted = [(tuple(row["input_ids"]), tuple(row["labels"])) for row in rows]
    assert sorted(documents(packed)) == sorted(wanted)
    assert max(packed["length"]) <= 20
    assert packed["index"][:] == list(range(len(packed)))
    assert f"40 documents packed into {len(packed)} rows of up to 20 tokens" in caplog.text
    assert pack_rows(rows, 20)[:] == packed[:]


def naive_best_fit(lengths, capacity):
    """Of all rows with room, the one with the least."""
    bins = []
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = [capacity - sum(lengths[i] for i in one) for one in bins]
        fits = [i for i, left in enumerate(room) if left >= lengths[number]]
        if not fits:
            bins.append([number])
        else:
            bins[min(fits, key=lambda i: room[i])].append(number)
    return bins


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_as_full_as_a_naive_best_fit_makes_them(seed):
    numbers = random.Random(seed)
    lengths = [numbers.randint(1, 30) for _ in range(200)]
    found, wanted = best_fit(lengths, 32), naive_best_fit(lengths, 32)
    assert sorted(i for one in found for i in one) == list(range(200))
    assert sorted(sum(lengths[i] for i in one) for one in found) == sorted(
        sum(lengths[i] for i in one) for one in wanted
    )


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(
        ValueError, match=r"row 1 has 9 tokens, but rows are packed to 8, and documents are not truncated"
    ):
        pack_rows(Dataset.from_list([{"input_ids": [3] * n, "labels": [3] * n} for n in (4, 9)]), 8)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"attention_mask": [1, 1, 1, 0]}, "row 1 has an attention_mask with 0"),
        ({"seq_lengths": [2, 2]}, "row 1 has seq_lengths of several documents"),
        ({"position_ids": [0, 1, 0, 1]}, "row 1 has position_ids that start again"),
    ],
)
def test_rows_with_padding_or_several_documents_are_refused(more, what):
    one = {"attention_mask": [1, 1, 1, 1], "seq_lengths": [4], "position_ids": [0, 1, 2, 3]}
    row = {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}
    assert len(pack_rows(Dataset.from_list([row | one, row | one]), 8)) == 1
    with pytest.raises(ValueError, match=what):
        pack_rows(Dataset.from_list([row | one, row | one | more]), 8)


def test_rows_with_images_are_refused():
    row = {"input_ids": [3, 4], "labels": [3, 4], "pixel_values": [[0.0]], "image_grid_thw": [1, 1, 1]}
    with pytest.raises(ValueError, match=r"the rows have images in \['image_grid_thw', 'pixel_values'\]"):
        pack_rows(Dataset.from_list([row]), 8)


def test_rows_without_labels_are_refused():
    with pytest.raises(ValueError, match="rows to pack have no labels"):
        pack_rows(Dataset.from_list([{"input_ids": [3, 4]}]), 8)


@pytest.mark.parametrize("weighting", ["entropy", "entropy(level='item')"])
@pytest.mark.parametrize("chunk", [0, 7])
def test_a_step_on_all_documents_is_that_of_rows_of_their_own(tmp_path, weighting, chunk):
    """Temperatures and weights are each document's, and the loss is divided by the same number of targets."""
    rows, logged = token_dataset(16, seed=3), {}
    slots = {"temperature": "energy(ratio=0.3)", "weighting": weighting, "loss_chunk_size": chunk}
    for name, data in (("apart", rows), ("packed", pack_rows(rows, 24))):
        trainer = DistillationTrainer(
            language_model(),
            taught_model(),
            arguments(
                tmp_path / name,
                **slots,
                per_device_train_batch_size=1,
                gradient_accumulation_steps=len(data),
                max_steps=1,
            ),
            train_dataset=data,
            processing_class=tokenizer(),
        )
        trainer.train()
        entry = next(entry for entry in trainer.state.log_history if "kd" in entry)
        logged[name] = {name: entry[name] for name in ("loss", "ce", "kd", "temperature", "weight", "grad_norm")}
    assert logged["packed"] == pytest.approx(logged["apart"], rel=1e-5)


def test_packed_rows_bring_less_padding():
    rows = TokenRows(64).rows
    whole, packed = Dataset.from_list(rows), pack_rows(Dataset.from_list(rows), 28)
    padding = [
        1 - sum(len(row["input_ids"]) for row in data) / TokenCollator(0)(data)["input_ids"].numel()
        for data in (whole, packed)
    ]
    assert padding[1] < 0.1 < padding[0]
