"""Every input that a forward names or takes by **kwargs reaches it; what is hfkd's own does not."""

import logging

import pytest
import torch
from test_proof import llama
from text_toys import TokenRows, language_model, token_dataset
from torch import nn
from toys import CLASSES, Net, Rows, arguments
from transformers import DataCollatorWithFlattening, default_data_collator

from hfkd import DistillationTrainer
from hfkd.data.text_collate import TokenCollator
from hfkd.models import image_classifier
from hfkd.teachers import CachedTextTeacher, build_text_cache

ALONE = {"ce_weight": 1.0, "kd_weight": 0.0}


class Watched(nn.Module):
    """Keeps the names that it was called with."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = Net(), set()

    def see(self, **inputs):
        self.seen |= {name for name, value in inputs.items() if value is not None}

    def forward(self, pixel_values, **others):
        self.see(**others)
        return self.net(pixel_values) + 0 * sum(x.sum() for x in others.values())


class Named(Watched):
    def forward(self, pixel_values, age=None, mask=None):
        self.see(age=age, mask=mask)
        return self.net(pixel_values) if age is None else self.net(pixel_values) + age.unsqueeze(-1)


class Other(Watched):
    def forward(self, pixel_values, mask):
        assert mask.shape[1:] == (2, 2)
        self.see(mask=mask)
        return self.net(pixel_values)


class ByName(Watched):
    """Names nothing: a wrapper that hands on what it gets."""

    def forward(self, **inputs):
        return super().forward(**inputs)


class More(Rows):
    """Columns of every kind beside the images, and a second label."""

    def __getitem__(self, i):
        more = {"age": i / 7, "mask": torch.eye(2).numpy(), "index": i, "view": 0, "length": 3, "labels_2": i % 2}
        return super().__getitem__(i) | more


def trainer(folder, student, teacher=None, rows=None, collator=None, **keywords):
    rows = More(16) if rows is None else rows
    settings = arguments(folder, **({} if teacher else ALONE) | keywords)
    return DistillationTrainer(
        student, teacher, settings, train_dataset=rows, eval_dataset=rows, data_collator=collator
    )


def test_each_network_gets_what_its_own_forward_names(tmp_path):
    student, teacher = Named(), Other()
    made = trainer(tmp_path, student, teacher)
    for run in (made.train, made.evaluate, lambda: made.predict(More(8))):
        student.seen.clear()
        run()
        assert student.seen == {"age", "mask"}
    assert teacher.seen == {"mask"}


def test_a_second_input_decides_the_loss(tmp_path):
    student = Named()
    evaluated = trainer(tmp_path, student).evaluate()["eval_loss"]
    rows = [More(16)[i] for i in range(16)]
    with torch.no_grad():
        logits = student(torch.stack([r["pixel_values"] for r in rows]), torch.tensor([r["age"] for r in rows]))
    expected = nn.functional.cross_entropy(logits, torch.tensor([r["labels"] for r in rows]))
    assert evaluated == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("kind", [Watched, ByName])
def test_a_network_of_kwargs_gets_what_a_users_collator_keeps_and_nothing_of_ours(tmp_path, kind):
    student, teacher = kind(), kind()
    made = trainer(tmp_path, student, teacher, collator=default_data_collator, label_names=["labels", "labels_2"])
    for run in (made.train, made.evaluate, lambda: made.predict(More(8)), made.scan_training_set):
        student.seen.clear()
        run()
        assert student.seen <= {"age", "mask"}
        if run != made.scan_training_set:
            assert student.seen == {"age", "mask"}
    assert teacher.seen >= {"age", "mask"}
    assert not teacher.seen & {"index", "view", "length", "labels"}


def test_nor_what_a_stored_teacher_said(tmp_path):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.seen = language_model(), set()

        def forward(self, input_ids, **others):
            self.seen |= set(others)
            return self.net(input_ids, **{k: v for k, v in others.items() if k != "domain"})

        def get_output_embeddings(self):
            return self.net.lm_head

    def collate(rows):
        return TokenCollator(0)(rows) | {"domain": [row["index"] for row in rows]}

    rows = token_dataset(16)
    build_text_cache(language_model(seed=1), rows, tmp_path / "cache", temperatures=4.0, progress_bar=False)
    student = Words()
    made = DistillationTrainer(
        student,
        CachedTextTeacher(tmp_path / "cache"),
        arguments(tmp_path / "run"),
        train_dataset=rows,
        data_collator=collate,
    )
    made.train()
    assert student.seen == {"attention_mask", "position_ids", "domain"}


def test_several_labels_give_an_eval_loss_and_reach_compute_metrics(tmp_path):
    labels = []
    student = Watched()
    made = trainer(tmp_path, student, label_names=["labels", "labels_2"])
    made.compute_metrics = lambda prediction: labels.append(prediction.label_ids) or {}
    assert made.evaluate()["eval_loss"] > 0
    expected = [More(16)[i] for i in range(16)]
    for column, name in enumerate(("labels", "labels_2")):
        assert labels[0][column].tolist() == [row[name] for row in expected]
    assert not student.seen


def test_views_of_an_image_have_its_other_inputs(tmp_path):
    class Views(More):
        def __getitem__(self, i):
            return super().__getitem__(i) | {"pixel_values": torch.stack([self.images[i]] * 2), "view": [0, 1]}

    student = Named()
    rows = Views(16)
    made = DistillationTrainer(student, None, arguments(tmp_path, **ALONE), train_dataset=rows)
    made.train()
    assert student.seen == {"age", "mask"}


def test_a_model_of_transformers_gets_no_names_that_it_does_not_list(tmp_path):
    trainer(tmp_path, image_classifier("cifar_resnet8", CLASSES), collator=default_data_collator).train()


@pytest.mark.parametrize("rows", [TokenRows(16), More(16)], ids=["text", "images"])
def test_a_columns_that_cannot_be_stacked_is_said(tmp_path, rows):
    class Ragged(More):
        def __getitem__(self, i):
            return super().__getitem__(i) | {"age": torch.zeros(1 + i)}

    if isinstance(rows, More):
        with pytest.raises(ValueError, match="the column 'age' cannot be stacked .* pass a custom data_collator"):
            trainer(tmp_path, Named(), rows=Ragged())


def test_flattened_rows_bring_their_sequence_lengths(tmp_path):
    student, teacher, seen = llama(), llama(), []
    for network in (student, teacher):
        network.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    rows = [{"input_ids": list(range(3, 11)), "labels": list(range(3, 11))}] * 8
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    once = {"per_device_train_batch_size": 2, "evaluate_teacher": False}
    made = trainer(tmp_path, student, teacher, rows, collator, **once)
    del seen[:]
    made.train()
    lengths = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    assert len(seen) == 6
    assert all(names >= lengths | {"input_ids", "position_ids"} for names in seen)


# ---- what is left out is said ------------------------------------------------------------------------------------


def said(caplog, level):
    return [
        r.getMessage() for r in caplog.records if r.levelno == level and r.name == "hfkd.training.validation.datasets"
    ]


def test_what_a_users_collator_keeps_for_nobody_is_said_once(tmp_path, caplog):
    trainer(tmp_path, Net(), collator=lambda rows: default_data_collator(rows)).train()
    assert said(caplog, logging.WARNING) == [
        "The columns ['age', 'labels_2', 'mask'] of the batch are not passed to the student, as its forward does not "
        "accept them."
    ]


def test_what_our_collator_leaves_out_is_a_warning_where_it_is_an_input(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    trainer(tmp_path / "kwargs", Watched()).train()
    assert said(caplog, logging.WARNING) == [
        "The columns ['age', 'labels_2', 'mask'] are dropped from the batch, although the student accepts them: pass a "
        "data_collator that keeps them."
    ]
    caplog.clear()
    trainer(tmp_path / "named", Net()).train()
    assert said(caplog, logging.WARNING) == []
    assert len(said(caplog, logging.INFO)) == 1
    caplog.clear()
    trainer(tmp_path / "all", Named(), label_names=["labels", "labels_2"]).train()
    assert said(caplog, logging.INFO) == said(caplog, logging.WARNING) == []


def test_he_da_cannot_mix_a_second_input(tmp_path):
    with pytest.raises(ValueError, match=r"mixes pixel_values only, and the student takes \['age', 'mask'\] too"):
        trainer(tmp_path, Named(), Other(), he_da="released")
