"""Heads for other tasks are refused when the trainer is built, by name; what is like them and fits is not."""

import warnings

import pytest
import torch
from text_toys import language_model
from torch import nn
from toys import Net, Rows, arguments
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
)

from hfkd import DistillationTrainer
from hfkd.models import Peers
from hfkd.teachers import LiveTeacher

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
X, Y = torch.arange(3, 27).view(4, 6), torch.arange(4) % 3
TEXT = [{"input_ids": x, "labels": x} for x in X]
SEQUENCES = [{"input_ids": x, "decoder_input_ids": x, "labels": x} for x in X]
ONE_LABEL = [{"input_ids": x, "labels": y} for x, y in zip(X, Y, strict=True)]


def bert(kind, **keywords):
    return kind(BertConfig(**SMALL, vocab_size=30, num_labels=3, **keywords))


def t5():
    config = T5Config(
        vocab_size=30, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    return T5ForConditionalGeneration(config)


class MyMaskedLM(BertForMaskedLM):
    """A user's own class."""


def vit(classes=5, **keywords):
    return ViTForImageClassification(ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=classes, **keywords))


def segformer():
    sizes = {"hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "depths": [1] * 4, "decoder_hidden_size": 8}
    return SegformerForSemanticSegmentation(SegformerConfig(**sizes, num_labels=5))


def ast():
    config = ASTConfig(
        **SMALL, max_length=32, num_mel_bins=16, patch_size=8, frequency_stride=8, time_stride=8, num_labels=3
    )
    return ASTForAudioClassification(config)


def lora(network):
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft's own call
        return get_peft_model(network, LoraConfig(target_modules=["query"]))


def trainer(folder, student, rows, teacher=None, **keywords):
    settings = arguments(folder, **keywords)
    return DistillationTrainer(
        student, teacher, settings, train_dataset=rows, eval_dataset=rows, data_collator=default_data_collator
    )


@pytest.mark.parametrize(
    ("build", "rows", "message"),
    [
        (lambda: bert(BertForMaskedLM), TEXT, "BertForMaskedLM is for masked language modelling"),
        (lambda: bert(MyMaskedLM), TEXT, "MyMaskedLM is for masked language modelling"),
        (lambda: lora(bert(BertForMaskedLM)), TEXT, "BertForMaskedLM is for masked language modelling"),
        (lambda: torch.compile(bert(BertForMaskedLM)), TEXT, "BertForMaskedLM is for masked language modelling"),
        (lambda: bert(BertForTokenClassification), TEXT, "BertForTokenClassification is for token classification"),
        (lambda: bert(BertForSequenceClassification), ONE_LABEL, "BertForSequenceClassification is for text class"),
        (t5, SEQUENCES, "T5ForConditionalGeneration is a sequence-to-sequence model"),
        (ast, TEXT, "ASTForAudioClassification is for audio classification"),
        (segformer, Rows(), "SegformerForSemanticSegmentation is for semantic segmentation"),
        (lambda: vit(problem_type="multi_label_classification"), Rows(), "ViT.* has problem_type='multi_label_cl"),
        (lambda: vit(problem_type="regression"), Rows(), "ViT.* has problem_type='regression', whose loss is no cross"),
        (lambda: Peers([vit(), vit(problem_type="regression")]), Rows(), "has problem_type='regression'"),
    ],
)
def test_a_student_for_another_task_is_refused(tmp_path, build, rows, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path / "run", build(), rows, ce_weight=1.0, kd_weight=0.0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrap", [lambda one: one, LiveTeacher, lambda one: [Net(), one]], ids=["", "live", "list"])
def test_a_teacher_for_another_task_is_refused(tmp_path, wrap):
    with pytest.raises(ValueError, match="has problem_type='multi_label_classification'"):
        trainer(tmp_path, Net(), Rows(), wrap(vit(problem_type="multi_label_classification")))
    with pytest.raises(ValueError, match="BertForMaskedLM is for masked language modelling"):
        trainer(tmp_path, language_model(vocab=30), TEXT, wrap(bert(BertForMaskedLM)))


def test_classifiers_and_language_models_of_every_kind_pass(tmp_path):
    trainer(tmp_path, vit(), Rows(), vit(problem_type="single_label_classification"))
    trainer(tmp_path, language_model(vocab=30), TEXT, language_model(vocab=30))
    # One label for a row of text: its loss is the model's own.
    student = bert(BertForSequenceClassification).eval()
    made = trainer(tmp_path, student, ONE_LABEL, items="image", ce_weight=1.0, kd_weight=0.0)
    with torch.no_grad():
        own = student(input_ids=X, labels=Y).loss.item()
    assert made.evaluate()["eval_loss"] == pytest.approx(own, rel=1e-6)


@pytest.mark.parametrize(
    ("student", "rows", "message"),
    [
        (lambda: Net(classes=1), Rows(classes=1), "the student has one logit, whose softmax is 1 whatever it says"),
        (lambda: vit(1), Rows(classes=1), "the student has one logit"),
        (lambda: nn.Conv2d(3, 5, 1), Rows(), r"the student's logits have shape \(2, 5, 8, 8\), and those of images"),
    ],
)
def test_logits_of_another_shape_are_refused(tmp_path, student, rows, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, student(), rows, ce_weight=1.0, kd_weight=0.0)


class Words(nn.Module):
    """A language model that names no output embedding."""

    def __init__(self, classes=30):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, classes))

    def forward(self, input_ids):
        return self.net(input_ids)


def test_a_language_model_that_says_nothing_of_its_head_trains(tmp_path):
    student = Words()
    made = trainer(tmp_path, student, TEXT, Words())
    with torch.no_grad():
        expected = nn.functional.cross_entropy(student(X)[:, :-1].flatten(0, 1), X[:, 1:].flatten())
    assert made.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)
    made.train()
    assert made.evaluate()["eval_loss"] < expected
    with pytest.raises(ValueError, match="the teacher gives 31 classes and the student 30"):
        trainer(tmp_path, student, TEXT, Words(31))
