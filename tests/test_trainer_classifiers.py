"""Classifiers of texts in the trainer: each network reads what it takes, and the same tokens."""

import copy

import pytest
import torch
from datasets import Dataset
from text_tokenizer import word_tokenizer
from text_toys import language_model
from toys import arguments
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from hfkd import DistillationTrainer
from hfkd.data.labelled_texts import tokenize_labelled
from hfkd.models.wordpiece import train_wordpiece

TEXTS = ["the film is good", "the plot is bad", "a dull story", "a fine cast"]


@pytest.fixture(scope="module")
def words():
    return train_wordpiece(TEXTS, 60)


def teacher(words):
    torch.manual_seed(1)
    config = BertConfig(
        num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=len(words)
    )
    return BertForSequenceClassification(config)


def student(words):
    torch.manual_seed(0)
    config = DistilBertConfig(n_layers=1, dim=8, n_heads=2, hidden_dim=8, vocab_size=len(words))
    return DistilBertForSequenceClassification(config)


def pairs(words):
    columns = {"text": TEXTS * 4, "pair": TEXTS[::-1] * 4, "labels": [0, 1, 0, 1] * 4}
    return tokenize_labelled(Dataset.from_dict(columns), words, max_length=16)


def make(tmp_path, words, taught, **keywords):
    given = {"processing_class": words, "train_dataset": pairs(words), "eval_dataset": pairs(words)} | keywords
    return DistillationTrainer(student(words), taught, arguments(tmp_path / "run", max_steps=2), **given)


def test_a_column_that_the_teacher_alone_takes_reaches_it(tmp_path, words):
    """DistilBERT takes no token types, by which BERT tells the two texts of a pair apart: all 0 is another question."""
    taught, seen = teacher(words), []
    trainer = make(tmp_path, words, taught, teacher_processing_class=words, weighting="entropy")
    taught.register_forward_pre_hook(lambda _, args, inputs: seen.append(inputs), with_kwargs=True)
    trainer.train()
    assert len(seen) > 2  # its accuracy, and two steps
    assert all((inputs["token_type_ids"] == 1).any() for inputs in seen)


def test_pairs_without_the_token_types_of_the_teacher_are_not_passed_over(tmp_path, words, caplog):
    """As a script for DistilBERT has them: its tokenizer makes none."""
    taught, said = teacher(words), "are pairs of texts without token_type_ids, by which the teacher"
    bare = {"train_dataset": pairs(words).remove_columns("token_type_ids"), "eval_dataset": None}
    make(tmp_path, words, taught, **bare)
    assert said in caplog.text  # what the teacher's tokenizer makes is not known
    taught.save_pretrained(tmp_path / "teacher")
    words.save_pretrained(tmp_path / "teacher")
    stored = BertForSequenceClassification.from_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match=f"{said}.* tokenise with return_token_type_ids=True"):
        make(tmp_path, words, stored, teacher_processing_class=words, **bare)
    caplog.clear()
    make(tmp_path, words, stored)  # with them
    single = pairs(words).map(lambda row: {"input_ids": row["input_ids"][:3] + row["input_ids"][-1:]})
    single = single.remove_columns(["token_type_ids", "attention_mask"])
    make(tmp_path / "single", words, stored, train_dataset=single, eval_dataset=None)
    # A chunk of concatenated texts that ends with one of them: [SEP] [CLS] ... [SEP].
    chunk = pairs(words).map(
        lambda row: {"input_ids": [row["input_ids"][-1], *row["input_ids"][:3], row["input_ids"][-1]]}
    )
    chunk = chunk.remove_columns(["token_type_ids", "attention_mask"])
    make(tmp_path / "chunk", words, stored, train_dataset=chunk, eval_dataset=None)
    words_of_one = copy.deepcopy(words)
    words_of_one.model_input_names = ["input_ids", "attention_mask"]
    words_of_one.save_pretrained(tmp_path / "teacher")  # fine-tuned without token types
    make(tmp_path / "alike", words, stored, **bare)
    assert said not in caplog.text


def test_a_teacher_of_other_tokens_is_refused(tmp_path, words):
    other = word_tokenizer(pad_token="<pad>")
    with pytest.raises(ValueError, match="the tokenizers of the student .* differ"):
        make(tmp_path, words, teacher(words), teacher_processing_class=other)


def test_the_tokenizer_of_a_collator_is_saved_as_trainer_does(tmp_path, words):
    rows = pairs(words).remove_columns("token_type_ids")
    one_label = student(words), rows, DataCollatorWithPadding(words)
    next_tokens = (
        language_model(vocab=len(words)),
        rows.remove_columns("labels"),
        DataCollatorForLanguageModeling(words, mlm=False),
    )
    for number, (network, data, collate) in enumerate((one_label, next_tokens)):
        args = arguments(tmp_path, ce_weight=1.0, kd_weight=0.0)
        trainer = DistillationTrainer(network, None, args, train_dataset=data, data_collator=collate)
        trainer.save_model(str(tmp_path / str(number)))
        assert trainer.processing_class is None
        stored = AutoTokenizer.from_pretrained(tmp_path / str(number))
        assert stored(TEXTS)["input_ids"] == words(TEXTS)["input_ids"]
