"""Labels of every integer type train alike, shares of mixed images are shares, and the rest is refused."""

import numpy as np
import pytest
import torch
from test_choice import vit
from text_toys import TokenRows, language_model
from toys import CLASSES, Net, Rows, arguments, teacher
from transformers import TrainerCallback, default_data_collator

from hfkd import DistillationTrainer
from hfkd.data.text_collate import TokenCollator

COLLATORS = [None, default_data_collator]


class Labelled(Rows):
    """`label(class id)` as each row's label."""

    def __init__(self, label, n=16):
        super().__init__(n)
        self.label = label

    def __getitem__(self, i):
        return {"pixel_values": self.images[i], "labels": self.label(int(self.labels[i]))}


def trainer(folder, rows, student=None, **keywords):
    collator = keywords.pop("data_collator", None)
    objective = keywords.pop("objective", "kd")
    return DistillationTrainer(
        student or Net(),
        teacher(),
        arguments(folder, **keywords),
        objective=objective,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collator,
    )


def losses(made):
    made.train()
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry], made.evaluate()["eval_loss"]


def one_hot(label):
    return torch.eye(CLASSES)[label]


def two_hot(label):
    return one_hot(label) + one_hot((label + 1) % CLASSES)


@pytest.mark.parametrize("objective", ["kd", "dkd"])
@pytest.mark.parametrize(
    "kind", [np.int32, np.int16, np.int8, np.uint8, lambda label: torch.tensor(label, dtype=torch.int32)]
)
def test_class_ids_of_any_integer_type_train_alike(tmp_path, kind, objective):
    expected = losses(trainer(tmp_path / "int", Labelled(int), objective=objective))
    assert losses(trainer(tmp_path / "kind", Labelled(kind), objective=objective)) == expected


@pytest.mark.parametrize("kind", [torch.int32, torch.int16])
def test_so_do_tokens(tmp_path, kind):
    def collate(rows):
        batch = TokenCollator(0)(rows)
        return {"input_ids": batch["input_ids"], "labels": batch["labels"].to(kind)}

    found = []
    for name, collator in (("int64", TokenCollator(0)), ("kind", collate)):
        settings = arguments(tmp_path / name, ce_weight=1.0, kd_weight=0.0)
        rows = TokenRows(8, low=6, high=7)
        made = DistillationTrainer(
            language_model(), None, settings, train_dataset=rows, eval_dataset=rows, data_collator=collator
        )
        found.append(losses(made))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_shares_of_any_float_type_train_alike(tmp_path, kind):
    expected, evaluated = losses(trainer(tmp_path / "ids", Labelled(int)))
    found = losses(trainer(tmp_path / "shares", Labelled(lambda label: one_hot(label).to(kind))))
    assert found[0] == pytest.approx(expected, rel=1e-5)
    assert found[1] == pytest.approx(evaluated, rel=1e-5)


@pytest.mark.parametrize("collator", COLLATORS)
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (two_hot, "float labels must be shares of classes, .* row 0 of the batch sums to 2, with a minimum of 0"),
        (lambda label: torch.ones(CLASSES), "sums to 5"),
        (lambda label: torch.zeros(CLASSES), "sums to 0"),
        (lambda label: 2 * one_hot(label) - one_hot((label + 1) % CLASSES), "sums to 1, with a minimum of -1"),
        (lambda label: torch.full((CLASSES,), float("nan")), "sums to nan"),
        (float, r"labels are of type float32, shape \(\d,\): class ids must be integers"),
        (
            lambda label: torch.tensor([label]),
            r"labels are of type int64, shape \(\d, 1\): class ids must have shape \[batch\]",
        ),
        (lambda label: one_hot(label).long(), r"labels are of type int64, shape \(\d, 5\): .* use argmax"),
        (lambda label: one_hot(label).bool(), r"labels are of type bool, shape \(\d, 5\): convert them to class ids"),
        (lambda label: torch.full((7,), 1 / 7), "mixed labels have 7 classes, but the student has 5"),
    ],
)
def test_what_would_be_misread_is_refused_when_the_trainer_is_built(tmp_path, collator, label, message):
    for student in (Net(), vit()):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path / "run", Labelled(label), student, data_collator=collator)
    assert not (tmp_path / "run").exists()


def test_float_labels_of_tokens_are_refused(tmp_path):
    rows = [{"input_ids": torch.arange(3, 9), "labels": torch.rand(6)}] * 4
    settings = arguments(tmp_path, ce_weight=1.0, kd_weight=0.0)
    with pytest.raises(ValueError, match=r"labels are of type float32, shape \(2, 6\): pass integers"):
        DistillationTrainer(language_model(), None, settings, train_dataset=rows, data_collator=default_data_collator)


class Late(Labelled):
    """One label an image in the first rows, which are looked at beforehand, and two in the others."""

    def __getitem__(self, i):
        return {"pixel_values": self.images[i], "labels": (one_hot if i < 8 else two_hot)(int(self.labels[i]))}


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from (Labelled(two_hot)[i] for i in range(16))


@pytest.mark.parametrize("collator", COLLATORS)
def test_rows_that_nobody_looked_at_beforehand_are_refused_in_training_and_evaluation(tmp_path, collator):
    for rows in (Late(None), Stream()):
        made = trainer(tmp_path / type(rows).__name__, rows, data_collator=collator)
        with pytest.raises(ValueError, match="float labels must be shares of classes"):
            made.train()
        with pytest.raises(ValueError, match="float labels must be shares of classes"):
            made.evaluate()


class SecondEpoch(TrainerCallback):
    begun = False

    def on_epoch_begin(self, args, state, control, **keywords):
        self.begun = state.epoch >= 1


def test_a_users_collator_is_looked_at_in_every_epoch(tmp_path):
    """Its labels are on a device by then, and to look at each batch would be to wait for it."""
    second = SecondEpoch()

    def collate(rows):
        batch = default_data_collator(rows)
        return batch | {"labels": batch["labels"] * (1 + second.begun)}

    made = trainer(tmp_path, Labelled(one_hot), data_collator=collate, num_train_epochs=3, max_steps=-1)
    made.add_callback(second)
    with pytest.raises(ValueError, match="float labels must be shares of classes"):
        made.train()
    assert made.state.global_step == 2


@pytest.mark.parametrize(
    ("empty", "said"), [(range(0), None), (range(16), "8 of 8 rows"), (range(3, 4), "1 of 8 rows")]
)
def test_rows_without_a_label_to_learn_are_warned_of_once(tmp_path, caplog, empty, said):
    """A label in the first place is none: nothing predicts it."""
    rows = [{"input_ids": [3, 4, 5, 6], "labels": [3] + [-100] * 3 if i in empty else [3, 4, 5, 6]} for i in range(16)]
    settings = arguments(tmp_path, ce_weight=1.0, kd_weight=0.0, num_train_epochs=2, max_steps=-1)
    DistillationTrainer(language_model(), None, settings, train_dataset=rows, data_collator=TokenCollator(0)).train()
    found = [r.getMessage() for r in caplog.records if r.name == "hfkd.training.validation.labels"]
    assert len(found) == (said is not None)
    assert said is None or f"{said} of a batch have no label" in found[0]
