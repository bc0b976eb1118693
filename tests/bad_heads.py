"""Networks for other tasks, and labels that a loss would misread: entries for tests/bad_input.py."""

import torch
from bad_training import trainer
from text_tokenizer import word_tokenizer
from text_toys import VOCAB, TokenRows, language_model, mixture_of_experts, taught_model
from torch import nn
from toys import CLASSES, Net, Rows, teacher
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
DECODER = {"d_model": 8, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "pad_token_id": 1}


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


def partly():
    """Rows of which those of class 0 have no label."""
    return Labelled(lambda label: label or -100)


def unlabelled():
    return [{"input_ids": [3, 4, 5]}] * 4


def image_model(**keywords):
    config = ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=CLASSES, **keywords)
    return trainer(lambda: ViTForImageClassification(config))


LABELS_ONLY = {"kd_weight": 0.0, "ce_weight": 1.0}


def text(build, taught=None, rows=TokenRows, **args):
    weights = {} if taught else LABELS_ONLY
    return trainer(build, taught, rows, weights | args, processing_class=word_tokenizer(pad_token="<end>"))


def text_model(kind, config, **args):
    def build():
        torch.manual_seed(0)  # the message has the losses
        return kind(config)

    return text(build, **args)


def bert(kind, **keywords):
    return lambda: kind(BertConfig(vocab_size=VOCAB, **SMALL, **keywords))


def tokens(build, made):
    """Rows of the (input_ids, labels) that `made` makes of tokens, batched as they are."""
    rows = [dict(zip(("input_ids", "labels"), made([3, 4, 5, 6, 7, 8]), strict=True))] * 8
    keywords = {"rows": lambda: rows, "args": LABELS_ONLY}
    return trainer(
        build, None, data_collator=DataCollatorForTokenClassification(word_tokenizer(pad_token="<end>")), **keywords
    )


def padded_otherwise(kind, side="right", **config):
    """A student of one label a row, whose rows are padded otherwise than it knows."""
    rows = [{"input_ids": [3, 4, 5], "labels": i % 3} for i in range(8)]
    made = kind.config_class(vocab_size=VOCAB, num_labels=3, initializer_range=0.3, **config)
    words = word_tokenizer(pad_token="<end>", padding_side=side)
    return trainer(lambda: kind(made), None, lambda: rows, LABELS_ONLY, processing_class=words)


def named_in_another_order(folder):
    """A student by name whose stored head has the teacher's classes in another order."""
    for name, words in (("student", ("good", "bad")), ("teacher", ("bad", "good"))):
        names = {"id2label": dict(enumerate(words)), "label2id": {word: i for i, word in enumerate(words)}}
        BertForSequenceClassification(BertConfig(vocab_size=VOCAB, **SMALL, **names)).save_pretrained(folder / name)
    rows = [{"input_ids": [3, 4, 5], "labels": i % 2} for i in range(8)]
    return trainer(lambda: str(folder / "student"), lambda: str(folder / "teacher"), lambda: rows)(folder)


HEADS = {
    "BertForQuestionAnswering": text(bert(BertForQuestionAnswering)),
    "BertForSequenceClassification, num_labels=1": text(bert(BertForSequenceClassification, num_labels=1)),
    "BertForMaskedLM, a teacher for the next token": text(bert(BertForMaskedLM), taught_model),
    "BertForMaskedLM, a tokenizer without a mask token": text(bert(BertForMaskedLM), rows=unlabelled),
    "LlamaForSequenceClassification, another pad token than the tokenizer": padded_otherwise(
        LlamaForSequenceClassification, pad_token_id=0, **SMALL
    ),
    "GPT2ForSequenceClassification, padding_side='left'": padded_otherwise(
        GPT2ForSequenceClassification, "left", pad_token_id=1, n_embd=8, n_layer=1, n_head=2, n_positions=32
    ),
    "a student by name, classes in another order": named_in_another_order,
    "BartForCausalLM": text_model(BartForCausalLM, BartConfig(vocab_size=VOCAB, **DECODER)),
    "GPT2LMHeadModel, task='token_classification'": text(language_model, task="token_classification"),
    "BertForTokenClassification, labels of 3 to 11 for 3 classes": text(bert(BertForTokenClassification, num_labels=3)),
    "problem_type='multi_label_classification', class ids": image_model(problem_type="multi_label_classification"),
    "a student of one logit": trainer(lambda: Net(classes=1), lambda: teacher(1)),
    'rows of label -100, objective="dkd"': trainer(rows=partly, objective="dkd"),
    "rows of label -100, labels alone": trainer(rows=partly, args={"ce_weight": 1.0, "kd_weight": 0.0}),
    "an eval_dataset with a row of label -100": trainer(eval_dataset=partly()),
    "multi-hot labels": labels(lambda label: torch.tensor([1.0, 0, 1, 0, 1])),
    "class ids that are floats": labels(float),
    "one-hot labels of bool": labels(lambda label: torch.arange(CLASSES) == label),
    "labels of shape [1]": labels(lambda label: torch.tensor([label])),
    "masked language modelling without masks": tokens(
        lambda: BertForMaskedLM(BertConfig(vocab_size=VOCAB, **SMALL)), lambda ids: (ids, ids)
    ),
    "labels of words for a model of tokens": tokens(
        lambda: BertForMaskedLM(BertConfig(vocab_size=VOCAB, **SMALL)), lambda ids: (ids, ids[:3])
    ),
    "labels that are the next tokens already": tokens(language_model, lambda ids: (ids[:-1], ids[1:])),
    "decoder inputs that are the labels": text(
        lambda: BartForConditionalGeneration(
            BartConfig(vocab_size=VOCAB, **DECODER, encoder_layers=1, encoder_attention_heads=2)
        ),
        rows=lambda: [{"input_ids": [3, 4, 5], "labels": [6, 7], "decoder_input_ids": [6, 7]}] * 8,
    ),
    "a router loss whose factor nobody names": text(Experts),
    "a second input of unequal shapes": trainer(Aged, rows=lambda: Old(torch.zeros)),
    "he_da='released' and a second input": trainer(Aged, rows=lambda: Old(float), args={"he_da": "released"}),
}
