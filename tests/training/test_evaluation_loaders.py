"""A set is scored by the loader that reads it, and in its order, whatever workers do."""

import time

import pytest
from torch.utils.data import DataLoader
from toys import Net, Rows, arguments, teacher
from transformers import default_data_collator

from hfkd import DistillationTrainer
from hfkd.evaluation.metrics import item_accuracy

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


class ReadsThemItself(DistillationTrainer):
    """With evaluation loaders that accelerate has not prepared."""

    def get_eval_dataloader(self, eval_dataset=None):
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        return DataLoader(rows, batch_size=8, collate_fn=default_data_collator)


def test_a_loader_of_ones_own_is_scored_whole_after_an_epoch_with_a_shorter_last_batch(tmp_path):
    scored = []

    def metrics(prediction):
        scored.append(len(prediction.label_ids))
        return item_accuracy(prediction)

    args = arguments(tmp_path, max_steps=-1, num_train_epochs=1, eval_strategy="epoch", learning_rate=1e-9)
    data = {"train_dataset": Rows(19), "eval_dataset": FAR, "compute_metrics": metrics}
    trainer = ReadsThemItself(Net(), teacher(), args, **data)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    trainer.train()
    inside = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert set(scored) == {len(FAR)}
    for found in (after, *inside):
        assert found["eval_loss"] == pytest.approx(before["eval_loss"], abs=1e-6)
        assert found["eval_accuracy"] == before["eval_accuracy"]


def test_the_teacher_is_scored_on_all_rows_of_a_loader_of_ones_own_in_a_second_training(tmp_path):
    args = arguments(tmp_path, max_steps=-1, num_train_epochs=1)
    trainer = ReadsThemItself(Net(), teacher(), args, train_dataset=Rows(19), eval_dataset=FAR)
    found = []
    for _ in range(2):
        trainer.train()
        found.append(next(e["teacher_accuracy"] for e in trainer.state.log_history if "teacher_accuracy" in e))
        trainer.eval_dataset = Rows(24, seed=5)  # the same rows, which are scored anew
    assert found[0] == found[1]
