"""trainer.train_dataset = others: the run is that of a trainer that was built with them, or is refused."""

import pytest
import torch
from datasets import ClassLabel, Features
from scan_job import packed
from text_toys import language_model, taught_model, token_dataset
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.data.transforms import ImageTransform
from hfkd.teachers import FrozenTeacher
from hfkd.training import run_identity
from hfkd.training.data_fingerprint import data_hash


def make(folder, rows, taught=None, **keywords):
    args = arguments(folder, **{"max_steps": 3, "evaluate_teacher": False} | keywords)
    return DistillationTrainer(Net(), taught or teacher(), args, train_dataset=rows)


def named(names):
    rows = packed()
    features = Features(rows.features | {"labels": ClassLabel(names=names)})
    return rows.with_format(None).cast(features).with_transform(ImageTransform(augment=True))


def assert_same(one, other):
    for mine, its in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_a_teachers_stored_logits_are_those_of_the_rows_at_hand(tmp_path):
    first, others = packed(), packed(seed=1)
    set_later = make(tmp_path / "later", first, teacher_cache_dir=str(tmp_path / "cache"))
    set_later.train()  # the cache knows images of these numbers
    again = make(tmp_path / "again", first, teacher_cache_dir=str(tmp_path / "cache"))
    again.train_dataset = others
    again.train()
    built = make(tmp_path / "built", others, teacher_cache_dir=str(tmp_path / "cache"))
    built.train()
    assert_same(again, built)
    assert run_identity.read(tmp_path / "again").rows == data_hash(others)


def test_a_teachers_stored_logits_are_those_of_its_weights_when_training_starts(tmp_path):
    taught, rows, runs = teacher(), packed(), {}
    with_cache = {"teacher_cache_dir": str(tmp_path / "cache")}
    make(tmp_path / "before", rows, taught, **with_cache).train()
    runs["again"] = make(tmp_path / "again", rows, taught, **with_cache)
    taught.load_state_dict(Net(16, seed=5).state_dict())
    runs["built"] = make(tmp_path / "built", rows, taught, **with_cache)
    for run in runs.values():
        run.train()
    assert_same(runs["again"], runs["built"])


def test_a_teachers_classes_are_in_the_order_of_the_rows_at_hand(tmp_path):
    names = [list("abcde"), list("edcba")]
    trainer = make(tmp_path, named(names[0]), FrozenTeacher(teacher(), label_names=names[0]))
    assert trainer.teacher.order is None
    trainer.train_dataset = named(names[1])
    trainer.train()
    assert trainer.teacher.order.tolist() == [4, 3, 2, 1, 0]
    trainer.train_dataset = packed()  # of which nobody says it: as the teacher has them
    trainer.train()
    assert trainer.teacher.order is None


def test_the_threshold_of_he_da_is_that_of_the_rows_at_hand(tmp_path):
    later, built = (
        make(tmp_path / name, packed(seed=k), he_da="released") for k, name in enumerate(("later", "built"))
    )
    built.train()
    later.train()
    later.train_dataset = built.train_dataset
    later.train()
    assert later.step.threshold == built.step.threshold


@pytest.mark.parametrize(
    ("rows", "keywords", "what"),
    [
        (
            lambda: packed(seed=1),
            {"objective": "kd + crd(layer='conv', sampling='other_images')"},
            "is made from those that it was built",
        ),
        (
            lambda: packed(transform=ImageTransform(mean=(0.1, 0.2, 0.3))),
            {},
            r"set to images of mean \(0.1, 0.2, 0.3\)",
        ),
    ],
)
def test_what_was_made_for_the_first_rows_is_refused(tmp_path, rows, keywords, what):
    trainer = make(tmp_path, packed(), **keywords)
    trainer.train_dataset = rows()
    with pytest.raises(ValueError, match=what):
        trainer.train()


def test_an_objective_that_is_built_from_the_rows_needs_them_when_the_trainer_is_built(tmp_path):
    trainer = make(tmp_path, None, objective="kd + fitnet(layer='conv')")
    trainer.train_dataset = packed()
    with pytest.raises(ValueError, match="is built from its rows: build another trainer, with train_dataset="):
        trainer.train()


class OwnLoader(DistillationTrainer):
    def get_train_dataloader(self):
        return [{"pixel_values": torch.zeros(2, 3, 8, 8), "labels": torch.tensor([0, 1])}]


class Half(Net):
    def __init__(self):
        super().__init__()
        self.bfloat16()

    def forward(self, x):
        return super().forward(x.bfloat16())


@pytest.mark.parametrize("kind", [DistillationTrainer, OwnLoader])
def test_a_student_that_trains_after_all_is_checked_as_one_that_was_built_with_rows(tmp_path, kind, caplog):
    trainer = kind(Half(), teacher(), arguments(tmp_path, max_steps=1, evaluate_teacher=False))
    trainer.train_dataset = Rows() if kind is DistillationTrainer else None
    said = "a step that changes a weight by less than about one part in"
    assert said not in caplog.text
    for _ in range(2):
        trainer.train()
        assert caplog.text.count(said) == 1


def test_a_student_that_does_not_train_is_refused_each_time(tmp_path):
    trainer = make(tmp_path, None)
    trainer.model.requires_grad_(False)
    trainer.train_dataset = Rows()
    for _ in range(2):
        with pytest.raises(ValueError, match="no parameter of the student requires a gradient"):
            trainer.train()


def causal(folder, rows, **settings):
    args = arguments(folder, **{"max_steps": 1, "evaluate_teacher": False} | settings)
    return DistillationTrainer(language_model(layers=2), taught_model(), args, train_dataset=rows)


def two_documents(row):
    return {"position_ids": [*range(2), *range(len(row["input_ids"]) - 2)]}


@pytest.mark.parametrize(
    ("changed", "settings", "what"),
    [
        (lambda row: {"labels": [*row["input_ids"][1:], -100]}, {}, "each label of the first rows is the token at the"),
        (two_documents, {"objective": "hidden_mse(layers={1: 1})"}, "the rows pack several documents"),
    ],
)
def test_rows_that_are_refused_when_a_trainer_is_built_are_refused_later_too(tmp_path, changed, settings, what):
    rows = token_dataset()
    trainer = causal(tmp_path / "one", rows, **settings)
    trainer.train()
    others = rows.map(changed)
    with pytest.raises(ValueError, match=what):
        causal(tmp_path / "two", others, **settings)
    trainer.train_dataset = others
    with pytest.raises(ValueError, match=what):
        trainer.train()
