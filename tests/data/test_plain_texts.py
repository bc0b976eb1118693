"""Texts -> rows of tokens, masked by seed, epoch and index."""

import pickle
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from text_tokenizer import WORDS, word_tokenizer

from hfkd.data.masking import TokenMasking
from hfkd.data.plain_texts import PlainTextArguments, tokenize_plain
from hfkd.models.wordpiece import train_wordpiece

TEXTS = [" ".join(WORDS[3 + (i + j) % 11] for j in range(3 + i % 5)) for i in range(60)]


@pytest.fixture(scope="module")
def wordpiece():
    return train_wordpiece(TEXTS, 100)


def texts(*given):
    return Dataset.from_dict({"text": list(given or TEXTS)})


def test_texts_stand_one_after_the_other_in_rows_of_one_length(wordpiece):
    whole = [i for text in TEXTS for i in wordpiece(text)["input_ids"]]
    rows = tokenize_plain(texts(), wordpiece, max_length=8)
    flat = [i for row in rows["input_ids"] for i in row]
    assert flat == whole[: len(whole) // 8 * 8]
    assert set(rows["length"]) == {8}
    assert rows["index"][:] == list(range(len(rows)))
    special = {wordpiece.cls_token_id, wordpiece.sep_token_id}
    marked = [i for row in rows["special_tokens_mask"] for i in row]
    assert marked == [int(i in special) for i in flat]


def test_line_by_line_a_text_is_a_row_and_empty_ones_are_none(wordpiece):
    rows = tokenize_plain(texts("a b", " ", "ask you me one two three"), wordpiece, max_length=5, line_by_line=True)
    expected = [wordpiece(text, truncation=True, max_length=5)["input_ids"] for text in ("a b", "ask you me one two")]
    assert rows["input_ids"][:] == expected


def test_texts_too_short_for_a_row_are_refused(wordpiece):
    with pytest.raises(
        ValueError, match="are too short for a row of max_length=64 tokens: lower it, or pass --line_by_line"
    ):
        tokenize_plain(texts("a", ""), wordpiece, max_length=64)


def read(monkeypatch, columns, **flags):
    rows = Dataset.from_dict(columns)
    monkeypatch.setattr("hfkd.data.text_sets.read_splits", lambda *_: {"train": rows, "dev": rows})
    return PlainTextArguments(**flags).read()


def test_columns_are_joined_by_line_breaks_without_empty_ones(monkeypatch):
    columns = {"instruction": ["ask", "a"], "context": ["", "b"], "response": ["me", "c"]}
    found = read(monkeypatch, columns, text_columns=["instruction", "context", "response"])
    assert found.train["text"][:] == ["ask\nme", "a\nb\nc"]
    with pytest.raises(ValueError, match=r"\['instruction', 'context', 'response'\] hold text.*--text_columns"):
        read(monkeypatch, columns)
    with pytest.raises(ValueError, match="no column 'answer'"):
        read(monkeypatch, columns, text_columns=["answer"])
    assert read(monkeypatch, {"line": ["a"], "number": [1]}).train["text"][:] == ["a"]


@pytest.mark.parametrize("share", [0, 1.5, -1])
def test_a_share_of_tokens_is_between_0_and_1(share):
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        PlainTextArguments(mask_probability=share)


# ---- masking ---------------------------------------------------------------------------------------------------------


def masked(wordpiece, **keywords):
    rows = tokenize_plain(texts(*TEXTS * 20), wordpiece, max_length=16)
    return rows, rows.with_transform(TokenMasking(wordpiece, **keywords))


def test_the_masks_are_berts(wordpiece):
    rows, seen = masked(wordpiece)
    ids, made, labels = (np.array(column) for column in (rows["input_ids"][:], seen[:]["input_ids"], seen[:]["labels"]))
    special = np.array(rows["special_tokens_mask"][:]) == 1
    chosen = labels != -100
    assert (labels[chosen] == ids[chosen]).all()
    assert (made[~chosen] == ids[~chosen]).all()
    assert not (chosen & special).any()
    assert abs(chosen.sum() / (~special).sum() - 0.15) < 0.02
    kinds = Counter(np.where(made == wordpiece.mask_token_id, "mask", np.where(made == ids, "same", "other"))[chosen])
    assert abs(kinds["mask"] / chosen.sum() - 0.8) < 0.05
    assert 0.03 < kinds["other"] / chosen.sum() < 0.15


def test_they_are_drawn_from_seed_epoch_and_index_alone(wordpiece):
    rows, seen = masked(wordpiece)
    first = seen[:8]
    assert seen[5]["input_ids"] == first["input_ids"][5]  # whoever else is in the batch
    assert rows.select([5]).with_transform(TokenMasking(wordpiece))[0]["labels"] == first["labels"][5]
    transform = seen.format["format_kwargs"]["transform"]
    again = pickle.loads(pickle.dumps(transform))
    assert rows.with_transform(again)[:8] == first
    assert rows.with_transform(TokenMasking(wordpiece, seed=1))[:8]["labels"] != first["labels"]
    transform.set_epoch(1)
    assert seen[:8]["labels"] != first["labels"]
    assert rows.with_transform(transform.at_epoch(0))[:8] == first


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(ValueError, match="no mask token"):
        TokenMasking(word_tokenizer())
