import logging

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from text_tokenizer import word_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from hfkd.data.text_collate import TokenCollator, padding_id

END = 1
ROWS = [
    {"input_ids": [3, 4, END], "labels": [-100, 4, END], "index": 7, "length": 3},
    {"input_ids": [5], "labels": [5], "index": 2, "length": 1},
]


def test_right_padding_masks_by_length_so_a_real_end_stays_a_target():
    batch = TokenCollator(word_tokenizer())(ROWS)
    known = batch.pop("host_targets")
    assert known.to("cuda", non_blocking=True) is known  # no loader moves it
    assert (known.position.tolist(), known.shape) == ([0, 1], (2, 3))
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[3, 4, END], [5, END, END]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "position_ids": [[0, 1, 2], [0, 0, 0]],
        "labels": [[-100, 4, END], [5, -100, -100]],
        "index": [7, 2],
    }


def test_left_padding_counts_positions_from_the_first_real_token():
    batch = TokenCollator(0, padding_side="left")([{"input_ids": row["input_ids"]} for row in ROWS])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[3, 4, END], [0, 0, 5]],
        "attention_mask": [[1, 1, 1], [0, 0, 1]],
        "position_ids": [[0, 1, 2], [0, 0, 0]],
    }


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_predicts_no_token_of_a_row_that_is_all_labels(side):
    rows = [{"input_ids": ids, "labels": ids} for ids in ([3, 4, 5, END], [5, END])]
    batch = TokenCollator(0, side)(rows)
    assert len(batch["host_targets"].position) == 3 + 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_length_is_rounded_up(side):
    batch = TokenCollator(0, side, pad_to_multiple_of=4)(ROWS)
    assert all(batch[name].shape == (2, 4) for name in ("input_ids", "attention_mask", "position_ids", "labels"))
    assert batch["attention_mask"].sum() == 4
    assert (batch["labels"] != -100).sum() == 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_gpt2_gives_a_padded_row_the_logits_of_the_row_alone(side):
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    rows = [{"input_ids": torch.randint(0, 50, (n,)).tolist()} for n in (12, 5, 1)]
    with torch.no_grad():
        padded = model(**TokenCollator(0, padding_side=side)(rows)).logits
        for row, logits in zip(rows, padded, strict=True):
            alone = model(torch.tensor([row["input_ids"]])).logits[0]
            n = len(alone)
            torch.testing.assert_close(logits[-n:] if side == "left" else logits[:n], alone)


def test_padding_id_falls_back_on_the_end_of_sequence(caplog):
    with caplog.at_level(logging.INFO, "hfkd"):
        assert padding_id(word_tokenizer()) == END
    assert "padding with the end of sequence" in caplog.text
    assert padding_id(word_tokenizer(pad_token="<unk>")) == 0
    neither = word_tokenizer()
    neither.eos_token = None
    with pytest.raises(ValueError, match="neither pad_token nor eos_token"):
        padding_id(neither)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"padding_side": "both"}, "unknown padding_side 'both'"), ({"pad_to_multiple_of": 0}, "must be 1 or more")],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenCollator(0, **arguments)


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"labels of shape \[1\] for input_ids of shape \[2\]"):
        TokenCollator(0)([{"input_ids": [1, 2], "labels": [1]}])


def test_rows_of_a_concatenated_dataset_without_labels_are_all_labels():
    """The columns that only the other dataset has are None, in any row of a batch."""
    instructions = Dataset.from_list([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "index": 0}])
    both = concatenate_datasets([instructions, Dataset.from_list([{"input_ids": [4, 5]}])])
    for order in ([0, 1], [1, 0]):
        rows = [both[number] for number in order]
        batch = TokenCollator(0, labels_from_tokens=True)(rows)
        labels = [[-100, 2, 3], [4, 5, -100]]
        assert batch["labels"].tolist() == [labels[number] for number in order]
        assert "index" not in batch
        with pytest.raises(ValueError, match=f"row {order.index(1)} of a batch has no labels, and others have"):
            TokenCollator(0)(rows)
    assert "labels" not in TokenCollator(0)([both[1]])
