"""The teacher's accuracy on the evaluation set: measured once, shown everywhere, felt nowhere."""

import json
import logging

import pytest
import torch
from text_toys import TokenRows, language_model, taught_model, token_dataset, tokenizer
from torch import nn
from toys import CLASSES, Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.experiments.classifier_run import run_classifier
from hfkd.models import Peers
from hfkd.models.calling import Call
from hfkd.teachers import CachedTextTeacher, build_text_cache

EVAL = Rows(21, seed=5)


class Counted(nn.Module):
    """A teacher that counts its images in evaluation batches of 7."""

    def __init__(self, seed=1):
        super().__init__()
        self.net, self.seen = Net(16, seed=seed), 0
        with torch.no_grad():
            self.net.head.weight.mul_(25)

    def forward(self, x):
        self.seen += len(x) * (len(x) == 7)
        return self.net(x)


def make(folder, taught=None, eval_dataset=EVAL, **keywords):
    slots = {k: keywords.pop(k) for k in ("objective", "kd_weight", "ce_weight") if k in keywords}
    train, student = keywords.pop("train", None) or Rows(), keywords.pop("student", None) or Net()
    settings = arguments(folder, **{"per_device_eval_batch_size": 7} | keywords)
    return DistillationTrainer(student, taught, settings, train_dataset=train, eval_dataset=eval_dataset, **slots)


def logged(trainer):
    """What the history holds of the teacher: one entry at most."""
    entries = [e for e in trainer.state.log_history if any("teacher" in key for key in e)]
    assert len(entries) <= 1
    return {k: v for e in entries for k, v in e.items() if k not in ("epoch", "step")}


@torch.no_grad()
def accuracy(network, rows=EVAL):
    return (network(rows.images).argmax(-1) == rows.labels).float().mean().item()


def test_it_is_the_share_of_right_images(tmp_path):
    trainer = make(tmp_path, teacher())
    trainer.train()
    assert 0 < accuracy(teacher()) < 1
    assert logged(trainer) == {"teacher_accuracy": pytest.approx(accuracy(teacher()))}


def test_how_the_teacher_is_called_is_found_once_for_all_batches(tmp_path, monkeypatch):
    found, of = [], Call.of
    monkeypatch.setattr(Call, "of", lambda network: found.append(network) or of(network))

    def times(name, rows):
        trainer = make(tmp_path / name, teacher(), eval_dataset=Rows(rows, seed=7))
        found.clear()
        trainer.train()
        return len(found)

    assert times("one batch", 8) == times("four batches", 32)


def test_of_several_teachers_each_and_their_mean(tmp_path):
    class Mean(nn.Module):
        def forward(self, x):
            return (teacher()(x) + Net(16, seed=4)(x)) / 2

    trainer = make(tmp_path, [teacher(), Net(16, seed=4)])
    trainer.train()
    expected = [accuracy(network) for network in (Mean(), teacher(), Net(16, seed=4))]
    names = ("teacher_accuracy", "teacher_1_accuracy", "teacher_2_accuracy")
    assert logged(trainer) == {name: pytest.approx(value) for name, value in zip(names, expected, strict=True)}


def test_of_several_evaluation_sets_each(tmp_path):
    other = Rows(16, seed=9)
    trainer = make(tmp_path, teacher(), eval_dataset={"first": EVAL, "other": other})
    trainer.train()
    expected = {"teacher_accuracy_first": accuracy(teacher()), "teacher_accuracy_other": accuracy(teacher(), other)}
    assert logged(trainer) == {name: pytest.approx(value) for name, value in expected.items()}


class MultiHot(Rows):
    """Each row's class and the one after it."""

    def __getitem__(self, i):
        ids = torch.tensor([self.labels[i], self.labels[i] + 1]) % CLASSES
        return {"pixel_values": self.images[i], "labels": torch.zeros(CLASSES).index_fill(0, ids, 1.0)}


def test_of_several_labels_a_row_it_is_the_share_of_right_pairs(tmp_path):
    rows = MultiHot(21, seed=5)
    with torch.no_grad():
        said = teacher()(rows.images) > 0
    right = (said == torch.stack([rows[i]["labels"] for i in range(21)])).float().mean().item()
    trainer = make(tmp_path, teacher(), rows, train=MultiHot(), task="multi_label_classification", max_steps=1)
    trainer.train()
    assert 0 < right < 1
    assert logged(trainer) == {"teacher_accuracy": pytest.approx(right)}


def test_a_language_model_is_scored_on_next_tokens_of_the_first_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("hfkd.reports.teacher_accuracy.TEXT_ROWS", 16)
    args = arguments(tmp_path, per_device_eval_batch_size=4)
    rows = TokenRows(23, seed=3)
    trainer = DistillationTrainer(
        language_model(),
        taught_model(),
        args,
        train_dataset=TokenRows(),
        eval_dataset=rows,
        processing_class=tokenizer(),
    )
    trainer.train()
    right = total = 0
    with torch.no_grad():
        for row in rows.rows[:16]:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
            hits = taught_model().eval()(ids).logits[0, :-1].argmax(-1) == labels
            right, total = right + int(hits[labels >= 0].sum()), total + int((labels >= 0).sum())
    assert logged(trainer) == {"teacher_accuracy": pytest.approx(right / total)}
    assert trainer.evaluate()["eval_loss"] > 0  # the loader that was left early is whole again


@pytest.mark.parametrize(
    "keywords",
    [
        {"evaluate_teacher": False},
        {"kd_weight": 0.0, "ce_weight": 1.0},
        {"eval_dataset": None},
        {"eval_dataset": [{"pixel_values": i, "labels": torch.full((CLASSES,), 0.2)} for i in EVAL.images]},
    ],
    ids=["switched off", "the teacher is not asked", "no evaluation set", "mixed labels"],
)
def test_what_leaves_it_out(tmp_path, keywords):
    taught = Counted()
    trainer = make(tmp_path, taught, **keywords)
    trainer.train()
    assert logged(trainer) == {}
    assert taught.seen <= 7


def test_without_a_live_teacher_there_is_nothing_to_measure(tmp_path):
    peers = make(tmp_path / "peers", student=Peers([Net(), Net(seed=1)]))
    alone = make(tmp_path / "alone", kd_weight=0.0, ce_weight=1.0)
    build_text_cache(taught_model(), token_dataset(), tmp_path / "cache", k=4, temperatures=1.0, progress_bar=False)
    stored = DistillationTrainer(
        language_model(),
        CachedTextTeacher(tmp_path / "cache"),
        arguments(tmp_path / "stored"),
        train_dataset=token_dataset(),
        eval_dataset=token_dataset(8, 1),
        processing_class=tokenizer(),
    )
    for trainer in (peers, alone, stored):
        trainer.train()
        assert logged(trainer) == {}


def test_a_resumed_run_does_not_measure_again(tmp_path):
    taught = Counted()
    make(tmp_path, taught, save_strategy="steps", save_steps=2, max_steps=2).train()
    assert taught.seen == 21
    resumed = make(tmp_path, taught, save_strategy="steps", save_steps=2, max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert taught.seen == 21
    assert logged(resumed) == {"teacher_accuracy": pytest.approx(accuracy(taught.net))}


def test_training_again_logs_it_and_does_not_measure_again(tmp_path):
    taught = Counted()
    trainer = make(tmp_path, taught)
    for _ in range(2):
        trainer.train()
        assert logged(trainer) == {"teacher_accuracy": pytest.approx(accuracy(taught.net))}
    assert taught.seen == 21


class Jittered(Rows):
    """A user's own random transform."""

    def __getitem__(self, i):
        row = super().__getitem__(i)
        return row | {"pixel_values": row["pixel_values"] + 0.1 * torch.randn(3, 8, 8)}


def test_training_is_the_same_to_the_bit(tmp_path):
    def losses(**keywords):
        student = nn.Sequential(nn.Dropout(0.2), Net(seed=2))
        trainer = make(tmp_path, teacher(), Jittered(21), train=Jittered(), student=student, max_steps=6, **keywords)
        trainer.train()
        return [e["loss"] for e in trainer.state.log_history if "loss" in e], student.state_dict()

    (plain, weights), (measured, others) = losses(evaluate_teacher=False), losses()
    assert plain == measured
    assert all(torch.equal(weights[name], value) for name, value in others.items())


@pytest.mark.parametrize(("bad", "warned"), [(False, False), (True, True)])
def test_a_teacher_near_chance_is_warned_of(tmp_path, caplog, bad, warned):
    class Labelled(Rows):
        """The labels are the teacher's own, or shifted by one."""

        def __init__(self, n=60, seed=8):
            super().__init__(n, seed=seed)
            with torch.no_grad():
                self.labels = (Counted().net(self.images).argmax(-1) + int(bad)) % CLASSES

    with caplog.at_level(logging.WARNING, "hfkd.reports.teacher_accuracy"):
        make(tmp_path, Counted(), Labelled()).train()
    said = [r.message for r in caplog.records if r.name == "hfkd.reports.teacher_accuracy"]
    assert len(said) == warned
    if warned:
        assert "teacher_accuracy is 0.0000 on the evaluation set: no better than chance (1 in 5 classes" in said[0]


def test_few_rows_say_nothing_about_chance(tmp_path, caplog):
    make(tmp_path, Net(seed=9), Rows(3)).train()
    assert not [r for r in caplog.records if r.name == "hfkd.reports.teacher_accuracy"]


def test_results_page_and_card_show_it(tmp_path):
    pytest.importorskip("matplotlib")
    trainer = make(tmp_path, teacher(), eval_strategy="steps", eval_steps=3)
    results = run_classifier(trainer, {})
    value = pytest.approx(accuracy(teacher()))
    assert results["teacher_accuracy"] == value
    assert json.loads((tmp_path / "results.json").read_text())["teacher_accuracy"] == value
    shown = accuracy(teacher())
    page = (tmp_path / "index.html").read_text()
    assert "teacher accuracy" in page
    assert f"{100 * shown:.2f} %" in page
    assert f"teacher_accuracy {shown:.4f}" in (tmp_path / "README.md").read_text()


def test_labels_alone_have_none_in_the_results(tmp_path):
    assert run_classifier(make(tmp_path, kd_weight=0.0, ce_weight=1.0), {}, page=False)["teacher_accuracy"] is None
