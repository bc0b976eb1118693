"""Rows grouped by length come in the same order after a resume."""

import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from datasets import Dataset
from text_toys import TokenRows, language_model, taught_model
from torch.utils.data import DataLoader
from toys import arguments
from transformers.trainer_pt_utils import BatchRebalanceSampler

from hfkd import DistillationTrainer
from hfkd.training.sampling import tell_epoch

GROUPED = {"train_sampling_strategy": "group_by_length"}
ROWS = Dataset.from_list([row | {"length": len(row["input_ids"])} for row in TokenRows(20, low=4, high=24).rows])


class Seen(DistillationTrainer):
    """Notes the rows of each step."""

    def compute_loss(self, model, inputs, *given, **keywords):
        vars(self).setdefault("steps", []).append(inputs["input_ids"].tolist())
        return super().compute_loss(model, inputs, *given, **keywords)


def made(folder, rows=ROWS, **settings):
    args = arguments(folder, **{"per_device_train_batch_size": 4, "max_steps": 8} | settings)
    return Seen(language_model(), taught_model(), args, train_dataset=rows)


DISPATCHED = {"accelerator_config": {"dispatch_batches": True}}


@pytest.mark.parametrize("way", [GROUPED, DISPATCHED, GROUPED | DISPATCHED], ids=["grouped", "dispatched", "both"])
def test_a_resumed_epoch_has_the_rest_of_its_rows(tmp_path, way):
    """5 batches an epoch: the run is taken up in the second."""
    saving = way | {"save_strategy": "steps", "save_steps": 6}
    whole, again = made(tmp_path, **saving), made(tmp_path, **saving)
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert again.steps == whole.steps[6:]
    assert whole.steps[:3] != whole.steps[5:]  # another order in each epoch


def test_lengths_are_read_from_their_column_at_once(tmp_path, monkeypatch):
    """One by one they took a minute for a million rows, at the start of each epoch."""
    whole = made(tmp_path, **GROUPED)
    sampler = whole._get_train_sampler()
    expected, read = list(sampler), type(ROWS).__getitem__
    seen = []
    monkeypatch.setattr(Dataset, "__getitem__", lambda self, key: seen.append(key) or read(self, key))
    assert list(sampler) == expected
    assert seen == []


def test_batches_of_equal_cost_are_others_for_each_seed(tmp_path):
    """Trainer's are the same for all seeds."""
    way = {"train_sampling_strategy": "batch_rebalance", "max_steps": 5}
    given = ({"seed": 1}, {"seed": 1}, {"seed": 2}, {"seed": 1, "data_seed": 2})
    runs = [made(tmp_path / str(n), **way, **seeds) for n, seeds in enumerate(given)]
    for run in runs:
        run.train()
    assert runs[0].steps == runs[1].steps != runs[2].steps == runs[3].steps


def test_a_rank_that_is_resumed_has_the_rest_of_its_batches_of_equal_cost():
    """Trainer begins with the batches of the first epoch."""
    rows = list(range(32))
    sampler = BatchRebalanceSampler([5 + i % 7 for i in rows], 8, dp_size=2, grad_accum=1)
    device = torch.device("cpu")
    loader = prepare_data_loader(DataLoader(rows, batch_sampler=sampler), device, 2, 0, put_on_device=False)
    loader.batch_sampler.num_processes = 1  # as Trainer does, since the sampler has the rank's batches alone
    found = []
    for epoch in (0, 1):
        tell_epoch(loader, epoch)
        found.append([batch.tolist() for batch in loader])
    tell_epoch(loader, 0)
    rest = skip_first_batches(loader, 2)
    tell_epoch(rest, 1)
    assert [batch.tolist() for batch in rest] == found[1][2:] != found[0][2:]


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_lengths_are_stored_beside_a_transform(tmp_path, strategy):
    """As those of texts that are masked at random."""
    names = [name for name in ROWS.column_names if name != "length"]
    transformed = ROWS.with_transform(lambda batch: {name: batch[name] for name in names})
    way = {"train_sampling_strategy": strategy, "max_steps": 5}
    plain, other = made(tmp_path / "plain", **way), made(tmp_path / "other", transformed, **way)
    plain.train()
    other.train()
    assert plain.steps == other.steps


def test_predictions_are_in_the_order_of_the_rows(tmp_path):
    """Trainer would give them by length."""
    found = [made(tmp_path, **way).predict(ROWS).label_ids for way in (GROUPED, {})]
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize("seedable", [True, False])
def test_an_order_that_no_checkpoint_knows_is_said(tmp_path, caplog, seedable):
    saving = {"save_strategy": "steps", "save_steps": 1, "accelerator_config": {"use_seedable_sampler": seedable}}
    made(tmp_path, **saving, max_steps=1).train()
    made(tmp_path, **saving, max_steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert ("use_seedable_sampler=False" in caplog.text) is not seedable


def test_the_order_of_rows_is_that_of_the_seed_whatever_was_seeded_since(tmp_path):
    """accelerate takes the process's seed when training begins, such as that of a trainer built in between."""
    alone = made(tmp_path / "alone", seed=1)
    alone.train()
    first, second = made(tmp_path / "first", seed=1), made(tmp_path / "second", seed=2)
    for run in (first, second):
        run.train()
    assert first.steps == alone.steps != second.steps
