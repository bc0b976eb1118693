"""Which task a network is taken for: by its class, its config and its inputs; what no task knows is refused by name."""

import warnings

import pytest
import torch
from task_toys import KINDS, bert, gpt2, t5
from text_toys import language_model
from torch import nn
from toys import Net, Rows, arguments
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    default_data_collator,
)

from hfkd import DistillationTrainer
from hfkd.models import Peers
from hfkd.tasks.base import TASKS
from hfkd.tasks.choice import chosen_task
from hfkd.teachers import FrozenTeacher

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
X, Y = torch.arange(3, 27).view(4, 6), torch.arange(4) % 3
TEXT = [{"input_ids": x, "labels": x} for x in X]
OTHER = [{"input_ids": x, "labels": x.flip(-1)} for x in X]
ONE_LABEL = [{"input_ids": x, "labels": y} for x, y in zip(X, Y, strict=True)]


class MyMaskedLM(BertForMaskedLM):
    """A user's own class."""


def vit(classes=5, **keywords):
    return ViTForImageClassification(ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=classes, **keywords))


def ctc():
    layers = {"conv_dim": (8,), "conv_kernel": (3,), "conv_stride": (2,), "num_feat_extract_layers": 1}
    return Wav2Vec2ForCTC(Wav2Vec2Config(**SMALL, **layers, num_conv_pos_embedding_groups=2, vocab_size=30))


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


def labels_only(folder, student, rows=TEXT, **keywords):
    return trainer(folder, student, rows, ce_weight=1.0, kd_weight=0.0, **keywords)


# ---- what is chosen ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_network_is_taken_for_what_it_was_made_for(kind):
    network = kind.build(8)
    for wrapped in (network, torch.compile(network), Peers([network, kind.build(8)])):
        inside = wrapped.peers if isinstance(wrapped, Peers) else [wrapped]
        assert chosen_task("auto", inside).name == kind.task


def test_so_are_a_users_subclass_and_a_network_with_adapters():
    config = bert(BertForMaskedLM)(8).config
    assert chosen_task("auto", [MyMaskedLM(config)]).name == "masked_lm"
    assert chosen_task("auto", [lora(MyMaskedLM(config))]).name == "masked_lm"


def test_a_network_that_says_nothing_has_its_teachers_task():
    classifier = bert(BertForSequenceClassification)(8)
    assert chosen_task("auto", [Words()], [classifier]).name == "sequence_classification"
    assert chosen_task("auto", [Words()], [Words()]).name == "causal_lm"
    assert chosen_task("auto", [Net()]).name == "image_classification"


@pytest.mark.parametrize("problem", [None, "single_label_classification"])
def test_a_classifier_of_one_label_a_row(problem):
    assert chosen_task("auto", [vit(problem_type=problem)]).name == "image_classification"
    build = bert(BertForSequenceClassification, problem_type=problem)
    assert chosen_task("auto", [build(8)]).name == "sequence_classification"


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_named_task_is_taken(task):
    assert chosen_task(task, [Words()]).name == task


def test_what_is_named_is_proved_still(tmp_path):
    with pytest.raises(
        ValueError, match="the model shifts its labels by one, and masked_lm predicts each label at its"
    ):
        labels_only(tmp_path / "run", language_model(vocab=30), OTHER, task="masked_lm")
    with pytest.raises(ValueError, match="predicts each label at its own position, and causal_lm shifts the labels"):
        labels_only(tmp_path / "run", bert30(BertForMaskedLM), OTHER, task="causal_lm")
    assert not (tmp_path / "run").exists()


def test_an_unknown_task_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(
        ValueError, match=r"unknown task 'mask_lm' \(did you mean 'masked_lm'\?\): pass one of \['auto'"
    ):
        arguments(tmp_path / "run", task="mask_lm")
    with pytest.raises(ValueError, match=r"unknown task 'xyz': pass one of \['auto'"):
        chosen_task("xyz", [Net()])


# ---- what is refused --------------------------------------------------------------------------------------------


def bert30(kind, **keywords):
    return kind(BertConfig(**SMALL, vocab_size=30, **{"num_labels": 3, **keywords}))


@pytest.mark.parametrize(
    ("build", "rows", "message"),
    [
        (
            lambda: bert30(BertForQuestionAnswering),
            TEXT,
            "BertForQuestionAnswering is for question answering, a task that hfkd does not support",
        ),
        (lambda: lora(bert30(BertForQuestionAnswering)), TEXT, "BertForQuestionAnswering is for question answering"),
        (lambda: bert30(BertForMultipleChoice), TEXT, "BertForMultipleChoice is for multiple choice"),
        (ctc, TEXT, "Wav2Vec2ForCTC is for speech recognition with CTC"),
        (
            lambda: ViTForMaskedImageModeling(ViTConfig(**SMALL, image_size=8, patch_size=4)),
            Rows(),
            "ViTForMaskedImageModeling is for masked image modelling",
        ),
        (
            lambda: bert30(BertForSequenceClassification, num_labels=1),
            ONE_LABEL,
            "has num_labels=1, which is a regression",
        ),
        (
            lambda: bert30(BertForSequenceClassification, problem_type="regression"),
            ONE_LABEL,
            "BertForSequenceClassification has problem_type='regression', which is a regression without probabilities",
        ),
        (lambda: vit(problem_type="regression"), Rows(), "ViTForImageClassification has problem_type='regression'"),
        (lambda: Peers([vit(), vit(problem_type="regression")]), Rows(), "has problem_type='regression'"),
    ],
)
def test_a_student_that_no_task_knows_is_refused(tmp_path, build, rows, message):
    with pytest.raises(ValueError, match=message):
        labels_only(tmp_path / "run", build(), rows)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrap", [lambda one: one, FrozenTeacher, lambda one: [Net(), one]], ids=["", "live", "list"])
def test_a_teacher_for_another_task_is_refused(tmp_path, wrap):
    several = vit(problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="ViTFor.* is for image_classification and ViTFor.* for multi_label_class"):
        trainer(tmp_path, vit(), Rows(), wrap(several))
    with pytest.raises(ValueError, match="GPT2LMHeadModel is for causal_lm and BertForMaskedLM for masked_lm"):
        trainer(tmp_path, language_model(vocab=30), TEXT, wrap(bert30(BertForMaskedLM)))
    with pytest.raises(ValueError, match="GPT2LMHeadModel is for causal_lm and T5ForCond.* for seq2seq_lm"):
        trainer(tmp_path, gpt2(8), TEXT, wrap(t5(8)))
    with pytest.raises(ValueError, match="ForTokenClassification is for token_.* and BertForMaskedLM for masked_lm"):
        trainer(tmp_path, bert30(BertForTokenClassification), TEXT, wrap(bert30(BertForMaskedLM)))
    with pytest.raises(ValueError, match="has problem_type='regression'"):
        trainer(tmp_path, Net(), Rows(), wrap(vit(problem_type="regression")))


@pytest.mark.parametrize(
    ("student", "rows", "message"),
    [
        (lambda: Net(classes=1), Rows(classes=1), "the student has a single logit, whose softmax is always 1"),
        (lambda: vit(1), Rows(classes=1), "the student has a single logit"),
        (lambda: nn.Conv2d(3, 5, 1), Rows(), r"logits have shape \(2, 5, 8, 8\), but image_classification needs \[b"),
    ],
)
def test_logits_of_another_shape_are_refused(tmp_path, student, rows, message):
    with pytest.raises(ValueError, match=message):
        labels_only(tmp_path, student(), rows)


def test_so_are_those_of_a_task_that_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"logits have shape \(2, 3\), but token_classification needs \[batch, length"):
        labels_only(tmp_path, bert30(BertForSequenceClassification), TEXT, task="token_classification")
    with pytest.raises(
        ValueError, match=r"logits have shape \(2, 6, 30\), but sequence_classification needs \[batch, c"
    ):
        labels_only(tmp_path, Words(), ONE_LABEL, task="sequence_classification")


class Words(nn.Module):
    """A language model that names no output embedding."""

    def __init__(self, classes=30):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, classes))

    def forward(self, input_ids):
        return self.net(input_ids)


class WholeText(Words):
    """A classifier of rows that is no model of transformers."""

    def forward(self, input_ids):
        return self.net(input_ids).mean(1)


def test_a_network_that_says_nothing_classifies_rows_of_one_label(tmp_path):
    made = trainer(tmp_path, WholeText(3), ONE_LABEL, WholeText(3))
    assert made.task.name == "sequence_classification"
    made.train()
    with pytest.raises(ValueError, match="needs .batch, classes."):
        trainer(tmp_path / "tokens", Words(3), ONE_LABEL, Words(3))


def test_a_network_of_ones_own_may_say_that_its_labels_are_several():
    network = WholeText(3)
    network.config = BertConfig(problem_type="multi_label_classification")
    assert chosen_task("auto", [network]).name == "multi_label_classification"


def test_a_network_that_says_nothing_is_no_language_model_of_other_labels(tmp_path):
    with pytest.raises(ValueError, match="labels of the first rows are not the tokens at their positions.*set task="):
        trainer(tmp_path, Words(), OTHER, Words())
    assert trainer(tmp_path, Words(), OTHER, Words(), task="token_classification").task.shift == 0
    assert trainer(tmp_path, Words(), OTHER, Words(), task="causal_lm").task.shift == 1


def test_a_language_model_that_says_nothing_of_its_head_trains(tmp_path):
    student = Words()
    made = trainer(tmp_path, student, TEXT, Words())
    with torch.no_grad():
        expected = nn.functional.cross_entropy(student(X)[:, :-1].flatten(0, 1), X[:, 1:].flatten())
    assert made.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)
    made.train()
    assert made.evaluate()["eval_loss"] < expected
    with pytest.raises(ValueError, match="the teacher has 31 classes and the student 30"):
        trainer(tmp_path, student, TEXT, Words(31))


def test_a_named_task_trains_a_network_of_ones_own(tmp_path):
    """Of a module that says nothing: each label in its own place."""
    student = Words()
    made = trainer(tmp_path, student, TEXT, Words(), task="token_classification")
    with torch.no_grad():
        expected = nn.functional.cross_entropy(student(X).flatten(0, 1), X.flatten())
    assert made.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)
    made.train()
    assert made.evaluate()["eval_loss"] < expected
