"""Tokenizers are those of their files, or it is said that transformers makes another."""

import json
import logging

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast

from hfkd.models.language import load_tokenizer
from hfkd.tasks.by_name import tokenizer_of_name

TEXT = "the cat sat on 12 mats"


@pytest.fixture
def trained():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = ["the cat sat on the mat in 1234 days", "a dog sat on the cats"]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "<eos>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


@pytest.mark.parametrize("load", [load_tokenizer, lambda folder: tokenizer_of_name(str(folder))])
@pytest.mark.parametrize(("kind", "other"), [("gpt2", False), ("llama", False), ("qwen2", True)])
def test_a_tokenizer_that_is_loaded_as_another_is_named(tmp_path, caplog, trained, load, kind, other):
    trained.save_pretrained(tmp_path)
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = load(tmp_path)
    assert (loaded(TEXT)["input_ids"] != trained(TEXT)["input_ids"]) == other
    said = f"loads the tokenizer of {tmp_path} as a Qwen2Tokenizer: "
    assert (said in caplog.text) == other
    remedy = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert remedy(TEXT)["input_ids"] == trained(TEXT)["input_ids"]


def test_padding_and_truncation_in_the_file_are_no_other_tokens(tmp_path, caplog, trained):
    trained.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    stored = Tokenizer.from_file(str(file))
    stored.enable_padding(length=300)
    stored.enable_truncation(3)
    stored.save(str(file))
    assert json.loads(file.read_text(encoding="utf-8"))["truncation"]["max_length"] == 3
    load_tokenizer(tmp_path)
    assert not caplog.text


def test_real_tokenizers_are_loaded_as_they_are(caplog, data_dir):
    for name in ("gpt2-tokenizer", "stories260K"):
        load_tokenizer(data_dir / name)
    assert not caplog.text
