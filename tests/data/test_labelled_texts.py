"""Texts and labels of any kind -> token ids and class ids."""

import logging

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from text_tokenizer import word_tokenizer

from hfkd.data.labelled_texts import LabelledTextArguments, tokenize_labelled

TEXTS = ["ask you", "answer me", "one two three", "a b"]


@pytest.fixture
def tokenizer():
    return word_tokenizer(pad_token="<pad>")


def rows(features=None, **columns):
    return Dataset.from_dict(columns, features=features)


def read(monkeypatch, train, scored=None, **flags):
    """What the flags make of two splits."""
    given = {"train": train, "validation": train if scored is None else scored}
    monkeypatch.setattr("hfkd.data.text_sets.read_splits", lambda *_: given)
    return LabelledTextArguments(**flags).read()


def test_labels_of_text_become_the_ids_of_their_names_in_both_splits(monkeypatch):
    train = rows(review=TEXTS, label=["pos", "neg", "neutral", "pos"])
    texts = read(monkeypatch, train, rows(review=TEXTS[:2], label=["neutral", "pos"]))
    assert texts.label_names == ["neg", "neutral", "pos"]
    assert texts.train.column_names == ["text", "labels"]
    assert texts.train["labels"][:] == [2, 0, 1, 2]
    assert texts.scored["labels"][:] == [1, 2]
    assert texts.scored.features["labels"] == texts.train.features["labels"]


def test_class_names_numbers_and_booleans_are_labels(monkeypatch):
    named = Features({"text": Value("string"), "label": ClassLabel(names=["world", "sports", "business"])})
    texts = read(monkeypatch, rows(named, text=TEXTS, label=[0, 1, 0, 2]))
    assert (texts.num_labels, texts.label_names) == (3, ["world", "sports", "business"])
    texts = read(monkeypatch, rows(sentence=TEXTS, label=[0, 1, 2, 3]))
    assert (texts.num_labels, texts.label_names) == (4, None)
    texts = read(monkeypatch, rows(text=TEXTS, label=[True, False, True, True]))
    assert texts.label_names == ["False", "True"]
    assert texts.train["labels"][:] == [1, 0, 1, 1]


def test_a_class_without_rows_is_said(monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "hfkd")
    read(monkeypatch, rows(text=TEXTS, label=[1, 2, 1, 2]))
    assert "the training split has no rows of the classes [0]" in caplog.text


LABEL = [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("train", "scored", "flags", "message"),
    [
        ({"text": TEXTS, "grade": LABEL}, None, {}, "no label column among"),
        ({"text": TEXTS, "label": LABEL}, None, {"label_column": "grade"}, "label_column='grade' is not in"),
        ({"text": TEXTS, "label": LABEL}, None, {"text_column": "body"}, "no column 'body': name one of"),
        ({"premise": TEXTS, "hypothesis": TEXTS, "label": LABEL}, None, {}, r"\['premise', 'hypothesis'\] hold text"),
        ({"label": LABEL, "number": LABEL}, None, {}, r"the column of the texts is ambiguous: \[\] hold text"),
        ({"text": LABEL, "label": LABEL}, None, {"text_column": "text"}, "holds Value.*instead of text"),
        ({"text": [*TEXTS[:3], None], "label": LABEL}, None, {}, "row 3 of the training split has no 'text'"),
        ({"text": TEXTS, "label": [0.5, 1.0, 2.0, 0.1]}, None, {}, "instead of one class per row"),
        ({"text": TEXTS, "label": [[0, 1]] * 4}, None, {}, "instead of one class per row"),
        ({"text": TEXTS, "label": [0, 1, -1, 1]}, None, {}, "row 2 of the training split has the label -1"),
        ({"text": TEXTS, "label": [0, 1, None, 1]}, None, {}, "row 2 of the training split has no label"),
        ({"text": TEXTS, "label": ["a", None, "b", "b"]}, None, {}, "row 1 of the training split has no label"),
        ({"text": TEXTS, "label": LABEL}, {"text": TEXTS[:1], "label": [2]}, {}, "label 2, but there are 2 classes"),
        ({"text": TEXTS, "label": LABEL}, {"text": TEXTS[:1], "label": [-1]}, {}, "is a hidden label"),
        ({"text": TEXTS, "label": list("abab")}, {"text": TEXTS[:1], "label": ["c"]}, {}, "has the label 'c'"),
        ({"text": TEXTS, "label": LABEL}, {"sentence": TEXTS, "label": LABEL}, {}, "evaluation split has no column"),
        ({"text": TEXTS, "label": LABEL}, {"text": TEXTS, "other": LABEL}, {}, "'label' is not in the dataset"),
        ({"text": TEXTS, "label": LABEL}, {"text": [], "label": []}, {}, "the evaluation split"),
    ],
)  # fmt: skip
def test_columns_that_would_be_misread_are_refused(monkeypatch, train, scored, flags, message):
    scored = None if scored is None else rows(**scored)
    with pytest.raises(ValueError, match=message):
        read(monkeypatch, rows(**train), scored, **flags)


def test_splits_whose_labels_are_of_two_kinds_are_refused(monkeypatch):
    named = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    with pytest.raises(ValueError, match="convert both to the same type"):
        read(monkeypatch, rows(named, text=TEXTS, label=LABEL), rows(text=TEXTS, label=LABEL))
    several = Features({"text": Value("string"), "label": Sequence(ClassLabel(names=["a", "b"]))})
    with pytest.raises(ValueError, match="instead of one class per row"):
        read(monkeypatch, rows(several, text=TEXTS, label=[[0], [1], [0, 1], []]))


def test_rows_are_cut_counted_and_numbered(tokenizer, caplog):
    caplog.set_level(logging.INFO, "hfkd")
    tokens = tokenize_labelled(rows(text=TEXTS, labels=LABEL), tokenizer, max_length=2)
    assert tokens["input_ids"][:] == [tokenizer(text)["input_ids"][:2] for text in TEXTS]
    assert (tokens["labels"][:], tokens["index"][:], tokens["length"][:]) == (LABEL, [0, 1, 2, 3], [2] * 4)
    assert "of which 1 are truncated at max_length=2" in caplog.text
    assert "text" not in tokens.column_names


def test_pairs_are_tokenised_together(monkeypatch, tokenizer):
    pairs = rows(premise=TEXTS, hypothesis=TEXTS[::-1], label=LABEL)
    texts = read(monkeypatch, pairs, text_column="premise", text_pair_column="hypothesis")
    tokens = tokenize_labelled(texts.train, tokenizer, max_length=16)
    expected = [tokenizer(a, b)["input_ids"] for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
    assert tokens["input_ids"][:] == expected


def test_a_row_without_tokens_is_refused(tokenizer):
    """Decoders such as GPT-2 have no special tokens, so that an empty text would be padding alone."""
    with pytest.raises(ValueError, match="row 2 has no tokens, because its text is empty"):
        tokenize_labelled(rows(text=["a", "b", "", "c"], labels=LABEL), tokenizer, max_length=16)
    pairs = rows(text=["a", "", "b", "c"], pair=["", "a", "b", "c"], labels=LABEL)
    assert tokenize_labelled(pairs, tokenizer, max_length=16)["length"][:2] == [1, 1]


def test_lengths_that_are_not_possible(tokenizer):
    tokenizer.model_max_length = 8
    with pytest.raises(ValueError, match="max_length=16 is above the tokenizer's maximum length of 8"):
        tokenize_labelled(rows(text=TEXTS, labels=LABEL), tokenizer, max_length=16)
    with pytest.raises(ValueError, match="leaves no room for text"):
        tokenize_labelled(rows(text=TEXTS, labels=LABEL), tokenizer, max_length=0)
