"""A set is scored by the loader that reads it, and in its order, whatever workers do."""

import time

import pytest
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer

KEPT = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
NEAR, FAR = Rows(16), Rows(24, seed=5)


def made(folder, evaluated=NEAR, **settings):
    return DistillationTrainer(
        Net(), teacher(), arguments(folder, **settings), train_dataset=Rows(), eval_dataset=evaluated
    )


def loss(trainer, *rows):
    return trainer.evaluate(*rows)["eval_loss"]


@pytest.fixture
def expected(tmp_path):
    plain = made(tmp_path / "plain")
    near, far = loss(plain, NEAR), loss(plain, FAR)
    assert near != far
    return near, far


def test_another_set_is_not_read_by_the_kept_workers_of_the_first(tmp_path, expected):
    trainer = made(tmp_path, **KEPT)
    assert (loss(trainer), loss(trainer, FAR), loss(trainer)) == (expected[0], expected[1], expected[0])
    trainer.eval_dataset = FAR
    assert loss(trainer) == expected[1]


def test_each_of_several_sets_that_are_passed_is_scored(tmp_path, expected):
    scores = made(tmp_path, **KEPT).evaluate({"near": NEAR, "far": FAR})
    assert (scores["eval_near_loss"], scores["eval_far_loss"]) == expected


def test_the_workers_of_the_trainers_own_sets_are_kept(tmp_path, expected):
    trainer = made(tmp_path, {"near": NEAR, "far": FAR}, **KEPT)
    loaders = [trainer.get_eval_dataloader(name) for name in ("near", "far", "near")]
    assert loaders[0] is loaders[2]
    assert loaders[0] is not loaders[1]
    scores = trainer.evaluate()
    assert (scores["eval_near_loss"], scores["eval_far_loss"]) == expected


class SlowStart(Rows):
    """The first batch is ready last."""

    def __getitem__(self, i):
        time.sleep(0.3 if i == 0 else 0)
        return super().__getitem__(i)


UNORDERED = {"dataloader_num_workers": 2, "dataloader_in_order": False}


def test_predictions_are_in_the_order_of_the_rows_whichever_worker_is_first(tmp_path):
    found = made(tmp_path, **UNORDERED).predict(SlowStart())
    assert found.label_ids.tolist() == SlowStart().labels.tolist()


@pytest.mark.parametrize("ordered", [True, False])
def test_an_order_of_training_rows_that_is_not_stored_is_said(tmp_path, caplog, ordered):
    saving = UNORDERED | {"dataloader_in_order": ordered, "save_strategy": "steps", "save_steps": 1}
    made(tmp_path, **saving, max_steps=1).train()
    made(tmp_path, **saving, max_steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert ("dataloader_in_order=False" in caplog.text) is not ordered
