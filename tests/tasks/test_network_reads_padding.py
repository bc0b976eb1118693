"""Networks that cannot mask padding: RWKV on the left, XLNet on the right, FNet on both sides."""

import logging

import pytest
import task_toys
import torch
from datasets import Dataset
from toys import arguments
from transformers import (
    DataCollatorForLanguageModeling,
    FNetConfig,
    FNetForSequenceClassification,
    RwkvConfig,
    RwkvForCausalLM,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from hfkd import DistillationTrainer
from hfkd.evaluation import TextGenerator


def rwkv(width, layers=2, **more):
    torch.manual_seed(width)
    sizes = {"hidden_size": width, "attention_hidden_size": width, "intermediate_size": width, "context_length": 64}
    network = RwkvForCausalLM(RwkvConfig(**sizes, vocab_size=task_toys.VOCAB, num_hidden_layers=layers, **more))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def trainer(folder, student, teacher, rows, side="right", collate=None, **settings):
    words = task_toys.tokenizer()
    words.padding_side = side
    parts = {"train_dataset": rows, "processing_class": words, "data_collator": collate and collate(words)}
    return DistillationTrainer(student, teacher, arguments(folder, **settings), **parts)


TEXTS = [{"input_ids": list(range(3, 7 + i % 3))} for i in range(8)]
PROMPTS = Dataset.from_list([{"input_ids": [3, 4, 5, 6], "labels": [-100, -100, 5, 6], "index": i} for i in range(4)])


def test_an_answer_does_not_depend_on_the_other_prompts(tmp_path):
    network, words = rwkv(8), task_toys.tokenizer()
    with pytest.raises(ValueError, match="RwkvForCausalLM reads the padding before a shorter prompt.*batch size"):
        TextGenerator(network, words, max_prompt_length=8, max_new_tokens=4)
    alone = TextGenerator(network, words, max_prompt_length=8, max_new_tokens=4, temperature=0.0, batch_size=1)
    assert alone(["a b c d", "you"])[1] == alone(["you"])[0]
    settings = {"on_policy": 1.0, "ce_weight": 0.0}
    with pytest.raises(ValueError, match="reads the padding before a shorter prompt.*on_policy_batch_size=1"):
        trainer(tmp_path, network, rwkv(16), PROMPTS, **settings)
    trainer(tmp_path, network, rwkv(16), PROMPTS, on_policy_batch_size=1, **settings)


def test_rows_that_a_collator_pads_on_the_left_are_refused(tmp_path):
    def collate(words):
        return DataCollatorForLanguageModeling(words, mlm=False)

    with pytest.raises(ValueError, match="RwkvForCausalLM reads the padding on the left of a row"):
        trainer(tmp_path, rwkv(8), rwkv(16), TEXTS, "left", collate)
    trainer(tmp_path, rwkv(8), rwkv(16), TEXTS, "right", collate)
    trainer(tmp_path / "other", task_toys.gpt2(8), task_toys.gpt2(16), TEXTS, "left", collate)


LABELLED = [row | {"labels": i % task_toys.CLASSES} for i, row in enumerate(TEXTS)]


def xlnet(width):
    torch.manual_seed(width)
    sizes = {"d_model": width, "n_layer": 1, "n_head": 2, "d_inner": width, "vocab_size": task_toys.VOCAB}
    more = {"pad_token_id": task_toys.PAD, "num_labels": task_toys.CLASSES, "initializer_range": 0.3, "dropout": 0.0}
    return XLNetForSequenceClassification(XLNetConfig(**sizes, **more))


def test_a_classifier_of_the_last_token_needs_padding_on_the_left(tmp_path):
    with pytest.raises(ValueError, match="XLNetForSequenceClassification reads the last token of a row"):
        trainer(tmp_path, xlnet(8), xlnet(16), LABELLED)
    trainer(tmp_path, xlnet(8), xlnet(16), LABELLED, "left")


def test_a_network_without_a_mask_is_warned_of(tmp_path, caplog):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": task_toys.VOCAB}
    config = FNetConfig(**sizes, pad_token_id=task_toys.PAD, num_labels=task_toys.CLASSES, initializer_range=0.3)
    torch.manual_seed(0)
    encoder = task_toys.bert(task_toys.BertForSequenceClassification)(16)
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, FNetForSequenceClassification(config), encoder, LABELLED)
    said = [r.getMessage() for r in caplog.records if "depend on the padding in its batch" in r.getMessage()]
    assert len(said) == 1
    assert "FNetForSequenceClassification" in said[0]
