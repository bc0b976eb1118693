"""Distillation trainers that people wrote on Trainer: the same loss here, and what they pass or have besides."""

import logging

import pytest
import task_toys
import torch
import torch.nn.functional as F
from task_toys import padded
from torch import nn
from toys import CLASSES, Net, Rows, arguments, teacher
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2LMHeadModel,
    default_data_collator,
)

from hfkd import DistillationArguments, DistillationTrainer

ALPHA, T = 0.3, 2.0
BOOK = {"ce_weight": ALPHA, "kd_weight": 1 - ALPHA, "temperature": T}


# ---- the table of docs/your_own.md ------------------------------------------------------------------------------


def soft(s, t, T=T, reduction="batchmean"):
    return nn.KLDivLoss(reduction=reduction)(F.log_softmax(s / T, dim=-1), F.softmax(t / T, dim=-1))


def mean_loss(s, y):
    return F.cross_entropy(s, y)


# What a row of the table says: the loss as written, the settings here, and whether the value differs by a constant.
LOSSES = {
    "alpha on the labels": (lambda s, t, y: ALPHA * mean_loss(s, y) + (1 - ALPHA) * T**2 * soft(s, t), BOOK, False),
    "lambda on the teacher": (
        lambda s, t, y: (1 - ALPHA) * mean_loss(s, y) + ALPHA * T**2 * soft(s, t),
        {"ce_weight": 1 - ALPHA, "kd_weight": ALPHA, "temperature": T},
        False,
    ),
    "the teacher alone": (
        lambda s, t, y: T**2 * soft(s, t),
        {"ce_weight": 0.0, "kd_weight": 1.0, "temperature": T},
        False,
    ),
    "without T squared": (
        lambda s, t, y: ALPHA * mean_loss(s, y) + (1 - ALPHA) * soft(s, t),
        BOOK | {"objective": "kd(scale='none')"},
        False,
    ),
    "a mean over the classes too": (
        lambda s, t, y: (
            ALPHA * mean_loss(s, y) + (1 - ALPHA) * T**2 * soft(s, t, reduction="sum") / s.numel()
        ),  # reduction="mean"
        BOOK | {"kd_weight": (1 - ALPHA) / CLASSES},
        False,
    ),
    "soft cross-entropy": (
        lambda s, t, y: (
            ALPHA * mean_loss(s, y)
            - (1 - ALPHA) * (F.softmax(t / T, dim=-1) * F.log_softmax(s / T, dim=-1)).sum(-1).mean()
        ),
        BOOK | {"objective": "kd(scale='none')"},
        True,
    ),
    "the networks swapped": (
        lambda s, t, y: ALPHA * mean_loss(s, y) + (1 - ALPHA) * T**2 * soft(t, s),
        BOOK | {"objective": "reverse_kl"},
        False,
    ),
    "squared logits": (
        lambda s, t, y: ALPHA * mean_loss(s, y) + (1 - ALPHA) * F.mse_loss(s, t),
        BOOK
        | {"temperature": None}
        | {"objective": lambda items, T: (items.student.logits - items.teacher.logits).square().mean(-1)},
        False,
    ),
    "label smoothing": (
        lambda s, t, y: ALPHA * F.cross_entropy(s, y, label_smoothing=0.1) + (1 - ALPHA) * T**2 * soft(s, t),
        BOOK | {"label_smoothing_factor": 0.1},
        False,
    ),
}


def gradient(loss, network):
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(network.parameters()))])


def loss_here(folder, student, taught, rows, **settings):
    """The training loss of all rows as one batch, by hfkd."""
    collator = settings.pop("data_collator", None)
    args = arguments(folder, **settings)
    made = DistillationTrainer(student, taught, args, train_dataset=rows, data_collator=collator)
    return made.compute_loss(student.train(), made.training_collator([rows[i] for i in range(len(rows))]))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_others_write_is_had_by_these_settings(tmp_path, name):
    written, settings, shifted = LOSSES[name]
    student, taught, rows = Net(), teacher(), Rows()
    logits = student(rows.images)
    theirs = written(logits, taught(rows.images).detach(), rows.labels)
    ours = loss_here(tmp_path, student, taught, rows, **settings)
    assert shifted or ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    torch.testing.assert_close(gradient(ours, student), gradient(theirs, student), rtol=1e-4, atol=1e-6)


def test_several_labels_a_row_are_pairs(tmp_path):
    """The mean of binary cross-entropies over rows and labels; that on the teacher differs by its entropy."""
    rows = [{"pixel_values": one, "labels": (torch.arange(CLASSES) == i % 3).float()} for i, one in enumerate(IMAGES)]
    student, taught, labels = Net(), teacher(), torch.stack([row["labels"] for row in rows])
    s, t = student(IMAGES), taught(IMAGES).detach()
    bce = F.binary_cross_entropy_with_logits
    theirs = ALPHA * bce(s, labels) + (1 - ALPHA) * T**2 * bce(s / T, torch.sigmoid(t / T))
    settings = BOOK | {"task": "multi_label_classification"}
    ours = loss_here(tmp_path, student, taught, rows, **settings, data_collator=default_data_collator)
    torch.testing.assert_close(gradient(ours, student), gradient(theirs, student), rtol=1e-4, atol=1e-6)


IMAGES = Rows(8).images


def tokens(kind):
    """Student, teacher and rows of a task on tokens; where the next token is predicted, one label is shifted."""
    if kind is GPT2LMHeadModel:
        return task_toys.gpt2(8), task_toys.gpt2(16), task_toys.texts(task_toys.answers)()
    return task_toys.bert(kind)(8), task_toys.bert(kind)(16), task_toys.texts(task_toys.tags)()


def test_batchmean_of_tokens_is_the_mean_times_their_number(tmp_path):
    student, taught = task_toys.gpt2(8), task_toys.gpt2(16)
    ids = torch.arange(24).view(4, 6) % 10 + 3
    rows = [{"input_ids": one.tolist(), "labels": one.tolist()} for one in ids]
    s, t = student(ids).logits[:, :-1], taught(ids).logits[:, :-1].detach()
    theirs = ALPHA * mean_loss(s.flatten(0, 1), ids[:, 1:].flatten()) + (1 - ALPHA) * T**2 * soft(s, t)
    ours = loss_here(tmp_path, student, taught, rows, **BOOK | {"kd_weight": (1 - ALPHA) * 5}, data_collator=padded)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)


@pytest.mark.parametrize("kind", [BertForTokenClassification, GPT2LMHeadModel])
def test_tokens_with_a_label_are_counted_and_no_others(tmp_path, kind):
    student, taught, rows = tokens(kind)
    batch = padded(rows)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    s, t, y = student(**inputs).logits, taught(**inputs).logits.detach(), batch["labels"]
    if kind is GPT2LMHeadModel:
        s, t, y = s[:, :-1], t[:, :-1], y[:, 1:]
    s, t, y = s[y != -100], t[y != -100], y[y != -100]
    theirs = ALPHA * mean_loss(s, y) + (1 - ALPHA) * T**2 * soft(s, t)
    expected = gradient(theirs, student)
    ours = loss_here(tmp_path, student, taught, rows, **BOOK, data_collator=padded)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    torch.testing.assert_close(gradient(ours, student), expected, rtol=1e-3, atol=1e-5)


def test_class_weights_are_in_the_label_term(tmp_path):
    student, taught, rows, weights = Net(), teacher(), Rows(), torch.tensor([1.0, 2.0, 1.0, 4.0, 1.0])
    s, t = student(rows.images), taught(rows.images).detach()
    theirs = ALPHA * F.cross_entropy(s, rows.labels, weight=weights) + (1 - ALPHA) * T**2 * soft(s, t)
    made = DistillationTrainer(student, taught, arguments(tmp_path, **BOOK), train_dataset=rows)
    made.label_smoother = lambda outputs, labels, **others: F.cross_entropy(outputs["logits"], labels, weight=weights)
    ours = made.compute_loss(student.train(), made.training_collator([rows[i] for i in range(len(rows))]))
    torch.testing.assert_close(gradient(ours, student), gradient(theirs, student), rtol=1e-4, atol=1e-6)


# ---- inputs and outputs -----------------------------------------------------------------------------------------


class OwnPixels(nn.Module):
    """A teacher with pixels of its own."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = teacher(), []

    def forward(self, teacher_pixel_values):
        self.seen.append(teacher_pixel_values.unique().tolist())
        return self.net(teacher_pixel_values)


class Stored(nn.Module):
    """Logits that the rows bring along."""

    def forward(self, teacher_logits):
        return teacher_logits


def rows_with(**more):
    return [{"pixel_values": image, "labels": i % CLASSES} | more for i, image in enumerate(IMAGES)]


@pytest.mark.parametrize("collator", [None, default_data_collator])
def test_inputs_of_the_teachers_own_are_not_replaced_by_the_students(tmp_path, collator):
    rows = rows_with(teacher_pixel_values=torch.ones(3, 8, 8))
    settings = {"train_dataset": rows, "data_collator": collator}
    with pytest.raises(ValueError, match="have teacher_pixel_values, .* Net, would be given pixel_values"):
        DistillationTrainer(Net(), teacher(), arguments(tmp_path / "a"), **settings)
    taught = OwnPixels()
    DistillationTrainer(Net(), taught, arguments(tmp_path / "b"), **settings).train()
    assert taught.seen == [[1.0]] * len(taught.seen) != []


def test_a_text_classifier_whose_rows_have_tokens_for_its_teacher(tmp_path):
    kind, rows = task_toys.bert(BertForSequenceClassification), task_toys.texts(task_toys.one_class)()
    with pytest.raises(ValueError, match="have teacher_input_ids, as if for the teacher alone"):
        DistillationTrainer(
            kind(8),
            kind(16),
            arguments(tmp_path),
            train_dataset=rows,
            data_collator=lambda rows: padded(rows) | {"teacher_input_ids": torch.ones(len(rows), 4).long()},
        )


def test_stored_logits_teach_by_a_module_that_returns_them(tmp_path):
    """The rows to evaluate have none, and the teacher is not scored there."""
    student, taught = Net(), teacher()
    logits = taught(IMAGES).detach()
    rows = [row | {"teacher_logits": one.tolist()} for row, one in zip(rows_with(), logits, strict=True)]
    ours = loss_here(tmp_path / "a", student, Stored(), rows, **BOOK, data_collator=default_data_collator)
    theirs = LOSSES["alpha on the labels"][0](student(IMAGES), logits, torch.arange(len(rows)) % CLASSES)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    args = arguments(tmp_path / "b", temperature="energy")
    made = DistillationTrainer(student, Stored(), args, train_dataset=rows, eval_dataset=rows_with())
    made.train()
    assert made.evaluate()["eval_loss"] > 0


class Returning(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.net, self.make = Net(), make

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        return self.make(logits, None if labels is None else F.cross_entropy(logits, labels))


RETURNED = {
    "loss, logits": lambda logits, loss: (loss, logits),
    "0, logits": lambda logits, loss: (0 if loss is None else loss, logits),
    "logits, loss": lambda logits, loss: (logits, loss),
    "dict": lambda logits, loss: {"loss": loss, "logits": logits},
}


@pytest.mark.parametrize("kind", RETURNED)
def test_networks_that_return_a_loss_if_they_get_labels(tmp_path, kind):
    args = arguments(tmp_path, max_steps=1)
    made = DistillationTrainer(Returning(RETURNED[kind]), teacher(), args, train_dataset=Rows(), eval_dataset=Rows(13))
    made.train()
    assert made.evaluate()["eval_loss"] > 0
    assert made.predict(Rows(13)).predictions.shape == (13, CLASSES)


def test_a_module_that_computes_another_loss_is_refused(tmp_path):
    def weighted(logits, loss):
        return {"loss": None if loss is None else 3 * loss, "logits": logits}

    with pytest.raises(ValueError, match="the loss computed by Returning on two rows is .* has another loss"):
        DistillationTrainer(Returning(weighted), teacher(), arguments(tmp_path / "a"), train_dataset=Rows())
    DistillationTrainer(Net(), Returning(weighted), arguments(tmp_path / "b"), train_dataset=Rows())  # as a teacher


class NeedsLabels(Net):
    def forward(self, pixel_values, labels):
        return super().forward(pixel_values)


class NeedsMore(Net):
    def forward(self, pixel_values, mask):
        return super().forward(pixel_values)


def test_what_a_forward_needs_and_does_not_get_is_named(tmp_path):
    with pytest.raises(ValueError, match="the student, a NeedsLabels, needs labels .* make it labels=None"):
        DistillationTrainer(NeedsLabels(), teacher(), arguments(tmp_path), train_dataset=Rows())
    with pytest.raises(ValueError, match=r"the teacher, a NeedsMore, needs mask .* lacks .*'pixel_values'"):
        DistillationTrainer(Net(), NeedsMore(), arguments(tmp_path), train_dataset=Rows())


# ---- arguments and subclasses -----------------------------------------------------------------------------------


class OwnArguments(DistillationArguments):
    """As books have it, on hfkd's arguments."""

    def __init__(self, *given, alpha=0.5, temperature=2.0, **keywords):
        super().__init__(*given, **keywords)
        self.alpha, self.temperature = alpha, temperature


def test_an_alpha_that_is_not_read_is_said(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    settings = {"use_cpu": True, "report_to": "none", "bf16": False}
    said = "OwnArguments sets alpha=0.5, which DistillationTrainer does not read: the loss has ce_weight=0.1"
    made = DistillationTrainer(Net(), teacher(), OwnArguments(str(tmp_path), **settings))
    assert repr(made.distillation_loss.temperature) == "Constant(temperature=2.0)"
    assert said in caplog.text
    caplog.clear()
    DistillationTrainer(Net(), teacher(), OwnArguments(str(tmp_path), **settings), ce_weight=0.5, kd_weight=0.5)
    DistillationTrainer(Net(), teacher(), OwnArguments(str(tmp_path), ce_weight=0.5, **settings))
    assert said not in caplog.text


@pytest.mark.parametrize(
    ("keywords", "kind", "message"),
    [
        ({"alpha": 0.5}, ValueError, "alpha= is no argument of DistillationTrainer: pass ce_weight="),
        ({"lambda_param": 0.5}, ValueError, "pass ce_weight=, .* and kd_weight="),
        ({"student_model": Net()}, ValueError, "student_model= is called model="),
        ({"train_datset": Rows()}, TypeError, "no argument 'train_datset'.* 'train_dataset'"),
    ],
)
def test_keywords_of_other_trainers(tmp_path, keywords, kind, message):
    with pytest.raises(kind, match=message):
        DistillationTrainer(Net(), teacher(), arguments(tmp_path), **keywords)


class OwnMethod(DistillationTrainer):
    def distillation_loss(self, s, t):
        return soft(s, t)


class Before(DistillationTrainer):
    def __init__(self, *arguments, config, **keywords):
        self.config = config
        super().__init__(*arguments, **keywords)


class After(DistillationTrainer):
    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.alpha, self.labels = 0.5, ["cat", "dog"]


def test_names_of_the_trainers_own_attributes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="OwnMethod has an attribute 'distillation_loss', .* my_distillation_loss"):
        OwnMethod(Net(), teacher(), arguments(tmp_path))
    with pytest.raises(ValueError, match="Before has an attribute 'config'"):
        Before(Net(), teacher(), arguments(tmp_path), config={"alpha": 0.5})
    made = After(Net(), teacher(), arguments(tmp_path), train_dataset=Rows(), eval_dataset=Rows())
    for run in (made.train, made.evaluate):
        with pytest.raises(ValueError, match="After has set a list as an attribute 'labels'"):
            run()


class OwnLoss(DistillationTrainer):
    """A loss of its own, the mean over its batch."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return F.cross_entropy(model(inputs["pixel_values"]), inputs["labels"])


class Divided(OwnLoss):
    loss_is_scaled_for_ga = False


def test_how_accumulated_losses_of_ones_own_are_added_up_is_said(tmp_path, caplog):
    def loss(kind, folder, **sizes):
        args = arguments(tmp_path / folder, max_steps=1, kd_weight=0.0, ce_weight=1.0, **sizes)
        return kind(Net(), None, args, train_dataset=Rows()).train().training_loss

    parts, said = {"gradient_accumulation_steps": 4}, "of 4 accumulated batches that compute_loss of OwnLoss returns"
    whole = loss(OwnLoss, "a", per_device_train_batch_size=32)
    assert loss(Divided, "b", **parts) == pytest.approx(whole, rel=1e-5)
    assert "accumulated" not in caplog.text
    assert loss(OwnLoss, "c", **parts) == pytest.approx(4 * whole, rel=1e-5)
    assert caplog.text.count(said) == 1


class Popping(DistillationTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs.pop("labels")
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def test_labels_that_a_subclass_takes_out_are_missed(tmp_path):
    made = Popping(Net(), teacher(), arguments(tmp_path), train_dataset=Rows(), eval_dataset=Rows())
    for run in (made.train, made.evaluate):
        with pytest.raises(ValueError, match=r"Popping calls compute_loss with a batch that has no labels"):
            run()
