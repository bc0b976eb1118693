"""Networks that are given by name: loaded with the head that the task needs."""

import pytest
import task_toys
import torch
from toys import arguments
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel

from hfkd import DistillationTrainer

NAMES = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}


def stored(folder, kind, width, **more):
    network = task_toys.bert(kind, **more)(width)
    network.save_pretrained(folder)
    task_toys.tokenizer().save_pretrained(folder)
    return network


def rows(count=8):
    texts = [[3 + (i + j) % 5 for j in range(4 + i % 3)] for i in range(count)]
    return [{"input_ids": text, "labels": i % task_toys.CLASSES} for i, text in enumerate(texts)]


def test_names_are_loaded_for_the_teachers_head(tmp_path):
    """A masked language model becomes a student with the teacher's classes; its tokenizer pads."""
    teacher = stored(tmp_path / "teacher", BertForSequenceClassification, 16, **NAMES)
    student = stored(tmp_path / "student", BertForMaskedLM, 8)
    names = (str(tmp_path / "student"), str(tmp_path / "teacher"))
    trainer = DistillationTrainer(*names, arguments(tmp_path / "run"), train_dataset=rows())
    trainer.train()
    assert isinstance(trainer.model, BertForSequenceClassification)
    assert trainer.model.config.id2label == NAMES["id2label"]
    assert trainer.teacher.label_names == ("no", "maybe", "yes")
    embeddings = trainer.model.bert.embeddings.word_embeddings.weight
    assert embeddings.shape == student.bert.embeddings.word_embeddings.weight.shape
    taught = trainer.teacher.networks[0].classifier.weight
    assert torch.equal(taught, teacher.classifier.weight)
    assert len(trainer.processing_class) == task_toys.VOCAB


def test_several_teachers_may_be_names(tmp_path):
    for name in ("one", "two", "student"):
        stored(tmp_path / name, BertForSequenceClassification, 8)
    teachers = [str(tmp_path / "one"), tmp_path / "two"]
    args = arguments(tmp_path / "run")
    trainer = DistillationTrainer(tmp_path / "student", teachers, args, objective="average", train_dataset=rows())
    assert len(trainer.teacher.networks) == 2


def test_a_stored_head_in_another_order_is_not_told_the_teachers(tmp_path):
    turned = {"id2label": {0: "yes", 1: "no", 2: "maybe"}, "label2id": {"yes": 0, "no": 1, "maybe": 2}}
    stored(tmp_path / "teacher", BertForSequenceClassification, 16, **NAMES)
    stored(tmp_path / "student", BertForSequenceClassification, 8, **turned)
    names = (str(tmp_path / "student"), str(tmp_path / "teacher"))
    with pytest.raises(ValueError, match=r"classes in another order \(yes, no, maybe instead of no, maybe, yes\)"):
        DistillationTrainer(*names, arguments(tmp_path / "run"), train_dataset=rows())
    stored(tmp_path / "student", BertForSequenceClassification, 8, **NAMES)
    DistillationTrainer(*names, arguments(tmp_path / "run"), train_dataset=rows())


def test_a_named_task_decides_the_head(tmp_path):
    stored(tmp_path / "base", BertForMaskedLM, 8)
    args = arguments(tmp_path / "run", task="masked_lm", ce_weight=1, kd_weight=0)
    data = [{"input_ids": row["input_ids"] * 2} for row in rows()]
    trainer = DistillationTrainer(str(tmp_path / "base"), None, args, train_dataset=data)
    assert isinstance(trainer.model, BertForMaskedLM)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_name_that_is_no_network_is_refused(tmp_path, role):
    network = task_toys.bert(BertForSequenceClassification)(8)
    networks = {"student": network, "teacher": network} | {role: str(tmp_path / "none")}
    with pytest.raises(ValueError, match=rf"the {role} .*none' is neither a folder with a config.json"):
        DistillationTrainer(*networks.values(), arguments(tmp_path / "run"), train_dataset=rows())


def test_a_teacher_without_a_head_is_refused(tmp_path):
    stored(tmp_path / "base", BertModel, 16)
    student = task_toys.bert(BertForSequenceClassification)(8)
    with pytest.raises(ValueError, match="has no stored weights for classifier"):
        DistillationTrainer(student, str(tmp_path / "base"), arguments(tmp_path / "run"), train_dataset=rows())


def test_a_student_with_another_head_is_refused(tmp_path):
    network = task_toys.bert(BertForSequenceClassification)(8)
    network.config.num_labels = 5
    BertForSequenceClassification(network.config).save_pretrained(tmp_path / "student")
    teacher = task_toys.bert(BertForSequenceClassification)(16)
    with pytest.raises(ValueError, match="but the teacher's classes need"):
        DistillationTrainer(str(tmp_path / "student"), teacher, arguments(tmp_path / "run"), train_dataset=rows())


def test_a_folder_without_a_tokenizer_has_none(tmp_path):
    """transformers makes one up, with other numbers for the mask and no words."""
    task_toys.bert(BertForMaskedLM)(8).save_pretrained(tmp_path / "base")
    args = arguments(tmp_path / "run", task="masked_lm", ce_weight=1, kd_weight=0)
    data = [{"input_ids": row["input_ids"] * 2} for row in rows()]
    with pytest.raises(ValueError, match="masked_lm needs a tokenizer for padding"):
        DistillationTrainer(str(tmp_path / "base"), None, args, train_dataset=data)
    words = task_toys.tokenizer()
    trainer = DistillationTrainer(str(tmp_path / "base"), None, args, train_dataset=data, processing_class=words)
    assert trainer.processing_class is words
