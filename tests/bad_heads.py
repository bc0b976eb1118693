"""Networks for other tasks, and labels that a loss would misread: entries for tests/bad_input.py."""

import torch
from bad_training import trainer
from text_toys import VOCAB, TokenRows, mixture_of_experts, tokenizer
from torch import nn
from toys import CLASSES, Net, Rows, teacher
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
DECODER = {"d_model": 8, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "pad_token_id": 1}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}


class Aged(nn.Module):
    """Takes a second input, of whatever shape."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, pixel_values, age=None):
        return self.net(pixel_values)


class Old(Rows):
    def __init__(self, age):
        super().__init__()
        self.age = age

    def __getitem__(self, i):
        return super().__getitem__(i) | {"age": self.age(i)}


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mixture_of_experts()

    def forward(self, input_ids):
        return self.net(input_ids)


class Labelled(Rows):
    def __init__(self, label):
        super().__init__()
        self.label = label

    def __getitem__(self, i):
        return {"pixel_values": self.images[i], "labels": self.label(int(self.labels[i]))}


def labels(label):
    return trainer(rows=lambda: Labelled(label))


def image_model(**keywords):
    config = ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=CLASSES, **keywords)
    return trainer(lambda: ViTForImageClassification(config))


def text(build):
    return trainer(build, None, TokenRows, {"kd_weight": 0.0, "ce_weight": 1.0}, processing_class=tokenizer())


def text_model(kind, config):
    def build():
        torch.manual_seed(0)  # the message has the losses
        return kind(config)

    return text(build)


HEADS = {
    "BertForMaskedLM": text_model(BertForMaskedLM, BertConfig(vocab_size=VOCAB, **SMALL)),
    "BertForTokenClassification": text_model(BertForTokenClassification, BertConfig(vocab_size=VOCAB, **SMALL)),
    "T5ForConditionalGeneration": text_model(T5ForConditionalGeneration, T5Config(vocab_size=VOCAB, **T5)),
    "BartForCausalLM": text_model(BartForCausalLM, BartConfig(vocab_size=VOCAB, **DECODER)),
    "problem_type='multi_label_classification'": image_model(problem_type="multi_label_classification"),
    "a student of one logit": trainer(lambda: Net(classes=1), lambda: teacher(1)),
    "multi-hot labels": labels(lambda label: torch.tensor([1.0, 0, 1, 0, 1])),
    "class ids that are floats": labels(float),
    "one-hot labels of bool": labels(lambda label: torch.arange(CLASSES) == label),
    "labels of shape [1]": labels(lambda label: torch.tensor([label])),
    "a router loss whose factor nobody names": text(Experts),
    "a second input of unequal shapes": trainer(Aged, rows=lambda: Old(torch.zeros)),
    "he_da='released' and a second input": trainer(Aged, rows=lambda: Old(float), args={"he_da": "released"}),
}
