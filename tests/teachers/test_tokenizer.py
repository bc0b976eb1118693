"""A teacher with other token ids is refused, an unknown one warned of."""

import logging

import pytest
from text_toys import VOCAB, WORDS, TokenRows, language_model, taught_model, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from toys import arguments
from transformers import PreTrainedTokenizerFast

from hfkd import DistillationTrainer


def of_words(words):
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<end>")


PERMUTED = [*WORDS[:4], *WORDS[:3:-1]]


def build(folder, teacher=None, **keywords):
    keywords = {"processing_class": tokenizer()} | keywords
    settings = arguments(folder / "run")
    return DistillationTrainer(
        language_model(), teacher or taught_model(), settings, train_dataset=TokenRows(), **keywords
    )


def saved(folder, words):
    """A teacher as from_pretrained gives it, with its tokenizer beside it."""
    taught_model().save_pretrained(folder)
    if words:
        of_words(words).save_pretrained(folder)
    return type(taught_model()).from_pretrained(folder)


@pytest.mark.parametrize("several", [False, True])
def test_a_teacher_whose_folder_has_permuted_ids_is_refused(tmp_path, several):
    teacher = saved(tmp_path / "teacher", PERMUTED)
    with pytest.raises(ValueError, match=r"tokenizers of the student .* differ: 10 of 14 tokens have different ids"):
        build(tmp_path, [taught_model(), teacher] if several else teacher)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_is_given_wins_and_is_compared(tmp_path, caplog):
    with pytest.raises(ValueError, match="tokenizers of the student"):
        build(tmp_path, teacher_processing_class=of_words(PERMUTED))
    with pytest.raises(ValueError, match="teacher_processing_class=str is not a tokenizer"):
        build(tmp_path, teacher_processing_class="gpt2")
    with caplog.at_level(logging.WARNING, "hfkd"):
        build(tmp_path, teacher_processing_class=tokenizer())
        build(tmp_path / "known", saved(tmp_path / "teacher", WORDS))
    assert not [r for r in caplog.records if "tokenizer" in r.message]


@pytest.mark.parametrize("keywords", [{}, {"teacher": "without"}])
def test_an_unknown_tokenizer_is_warned_of_once(tmp_path, caplog, keywords):
    teacher = saved(tmp_path / "teacher", None) if keywords else None
    with caplog.at_level(logging.WARNING, "hfkd"):
        build(tmp_path, teacher)
    assert caplog.text.count("cannot be compared, as one of them is not known") == 1


def test_a_pad_token_of_ones_own_is_no_difference(tmp_path, caplog):
    padded = tokenizer()
    padded.add_special_tokens({"pad_token": "[PAD]"})
    with caplog.at_level(logging.WARNING, "hfkd"):
        DistillationTrainer(
            language_model(vocab=VOCAB + 1),
            taught_model(vocab=VOCAB + 1),
            arguments(tmp_path),
            train_dataset=TokenRows(),
            processing_class=padded,
            teacher_processing_class=tokenizer(),
        )
    assert "tokenizer" not in caplog.text
