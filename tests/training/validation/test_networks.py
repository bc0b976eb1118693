"""What is refused before the first step, and that looking changes nothing."""

import pytest
import torch
from datasets import Dataset
from torch import nn
from toys import CLASSES, Net, Rows, arguments, packed_images, stream_of, teacher

from hfkd import DistillationTrainer
from hfkd.data.collate import ImageCollator
from hfkd.models.calling import Call
from hfkd.tasks.image_classification import ImageClassification
from hfkd.teachers import FrozenTeacher
from hfkd.training.validation.networks import check_networks

COLLATE = ImageCollator()
TASK = ImageClassification()


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.frozen, self.norm = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.norm(self.frozen(self.conv(x))).mean((2, 3)))


def check(student=None, taught=None, dataset=None):
    student = student or Net()
    live = None if taught is None else FrozenTeacher(taught)
    check_networks(student, Call.of(student), live, Rows() if dataset is None else dataset, COLLATE, TASK)


# ---- networks --------------------------------------------------------------------------------------------------------


def test_good_networks_pass():
    check()
    check(taught=teacher())
    check(dataset=packed_images([0, CLASSES - 1]), taught=teacher())
    check(dataset=stream_of([99]))  # cannot be looked at without using it up


def test_another_number_of_classes():
    with pytest.raises(ValueError, match="the teacher has 7 classes and the student 5, .* build the student with"):
        check(taught=teacher(7))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_teacher(value):
    broken = teacher()
    broken.head.bias.data[2] = value
    with pytest.raises(ValueError, match="the teacher's logits are NaN or infinite on the first training rows"):
        check(taught=broken)


@pytest.mark.parametrize("where", [0, 40, 79])
@pytest.mark.parametrize(("label", "message"), [(5, "labels run from 0 to 5"), (-1, "labels run from -1 to 4")])
def test_a_label_out_of_range_is_found_anywhere_in_a_dataset(where, label, message):
    labels = [i % CLASSES for i in range(80)]
    labels[where] = label
    with pytest.raises(ValueError, match=rf"{message}, but the student has 5 classes \(0 to 4\): give it more labels"):
        check(dataset=packed_images(labels))


def test_only_the_rows_that_are_trained_on_count():
    check(dataset=packed_images([0, 1, 9]).select([0, 1]))


def test_labels_that_a_transform_maps_are_taken_from_what_it_gives():
    def from_one(rows):
        return {"pixel_values": [torch.zeros(3, 8, 8)] * len(rows["labels"]), "labels": [x - 1 for x in rows["labels"]]}

    data = Dataset.from_dict({"labels": [1, 2, CLASSES]})
    check(dataset=data.with_transform(from_one))
    with pytest.raises(ValueError, match="labels run from -2 to 0"):
        check(dataset=Dataset.from_dict({"labels": [-1, 1]}).with_transform(from_one))


def test_a_plain_torch_dataset_is_checked_on_its_first_rows():
    rows = Rows()
    rows.labels[1] = CLASSES
    with pytest.raises(ValueError, match="labels run from 0 to 5"):
        check(dataset=rows)


@pytest.mark.parametrize(("classes", "fits"), [(CLASSES, True), (CLASSES + 1, False)])
def test_mixed_labels(classes, fits):
    data = [{"pixel_values": torch.zeros(3, 8, 8), "labels": torch.full((classes,), 1 / classes)}] * 3
    if fits:
        check(dataset=data)
    else:
        with pytest.raises(ValueError, match="mixed labels have 6 classes, but the student has 5"):
            check(dataset=data)


# ---- looking changes nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_batch_norm_are_as_before(training):
    student = Normed().train(training)
    student.frozen.eval()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    check(student, teacher())
    assert [m.training for m in (student, student.conv, student.frozen, student.norm)] == [
        training,
        training,
        False,
        training,
    ]
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters())


def test_modes_are_as_before_when_the_student_fails():
    student = Net().train()
    with pytest.raises(ValueError, match="the student, a Net, cannot process the training images"):
        check(student, dataset=[{"pixel_values": torch.zeros(4, 8, 8), "labels": 0}])
    assert student.training
    assert student.conv.training


class Named:
    """A collator that adds what is no tensor: texts and a number."""

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, rows):
        return self.collate(rows) | {"names": [f"row {i}" for i in range(len(rows))], "longest": 3}


@pytest.mark.parametrize("temperature", ["4.0", "energy"])
def test_a_batch_may_hold_what_is_no_tensor(tmp_path, temperature):
    logged = []
    for collate in (ImageCollator(), Named(ImageCollator())):
        rows = {"train_dataset": Rows(), "eval_dataset": Rows(8), "data_collator": collate}
        trainer = DistillationTrainer(Net(), teacher(), arguments(tmp_path, temperature=temperature), **rows)
        trainer.train()
        logged.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert trainer.evaluate()["eval_loss"] > 0
    assert logged[0] == logged[1]
