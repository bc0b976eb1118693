"""A stream whose length is not the number of its rows is warned of, and no step has what is left of another epoch."""

import pytest
import torch
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer

EPOCHS = {"max_steps": -1, "num_train_epochs": 2, "train_sampling_strategy": "sequential"}


class Said(torch.utils.data.IterableDataset):
    """`rows` rows in order, each worker's own, and a length of `said`."""

    def __init__(self, rows, said):
        self.rows, self.said = Rows(rows), said

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        step, first = (worker.num_workers, worker.id) if worker else (1, 0)
        yield from (self.rows[i] for i in range(first, len(self.rows), step))

    def __len__(self):
        return self.said


class Seeing(DistillationTrainer):
    """Keeps the number of rows of each batch that it trains on."""

    def training_step(self, model, inputs, *others):
        vars(self).setdefault("seen", []).append(len(inputs["labels"]))
        return super().training_step(model, inputs, *others)


def trained(folder, rows, resume=None, **settings):
    trainer = Seeing(Net(), teacher(), arguments(folder, **EPOCHS | settings), train_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def norms(trainer):
    return [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]


def test_what_is_left_of_a_stream_that_ends_early_is_in_no_other_step(tmp_path, caplog):
    """The gradients of the third batch were added to those of the first step of the next epoch."""
    settings = {"gradient_accumulation_steps": 2, "learning_rate": 0.0}
    found = trained(tmp_path / "found", Said(24, 48), **settings)
    assert found.seen == [8] * 4
    assert norms(found)[0] == norms(found)[1]
    said = "has given 3 batches in this epoch, but its length says 6. The last 1, too few for a step, are left out."
    assert caplog.text.count(said) == 1
    caplog.clear()
    right = trained(tmp_path / "right", Said(32, 32), **settings)
    assert right.seen == [8] * 8
    assert "its length" not in caplog.text


def test_an_early_end_is_seen_in_a_resumed_epoch(tmp_path, caplog):
    settings = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1, "num_train_epochs": 1}
    trained(tmp_path, Said(40, 64), **settings)
    caplog.clear()
    resumed = trained(tmp_path, Said(40, 64), str(tmp_path / "checkpoint-1"), **settings)
    assert resumed.seen == [8, 8]
    assert "has given 5 batches in this epoch, but its length says 8" in caplog.text


@pytest.mark.parametrize(("rows", "left"), [(20, "18 of the 20 rows"), (32, None)])
def test_rows_that_workers_leave_out_of_each_epoch_are_said(tmp_path, caplog, rows, left):
    """Of 20 rows each worker has 10, in batches of 8 and 2: 4 batches, where the length says 3."""
    trained(tmp_path, Said(rows, rows), dataloader_num_workers=2, num_train_epochs=1)
    assert ("ends with a smaller batch of its own" in caplog.text) == (left is not None)
    assert left is None or left in caplog.text


def test_an_endless_stream_has_epochs_of_the_length_that_it_says(tmp_path, caplog):
    assert trained(tmp_path, Said(64, 32)).seen == [8] * 8
    assert "length" not in caplog.text
