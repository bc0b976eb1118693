"""Rows grouped by length come in the same order after a resume."""

import pytest
from datasets import Dataset
from text_toys import TokenRows, language_model, taught_model
from toys import arguments

from hfkd import DistillationTrainer

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


def test_a_resumed_epoch_has_the_rest_of_its_rows(tmp_path):
    """5 batches an epoch: the run is taken up in the second."""
    saving = GROUPED | {"save_strategy": "steps", "save_steps": 6}
    whole, again = made(tmp_path, **saving), made(tmp_path, **saving)
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert again.steps == whole.steps[6:]
    assert whole.steps[:3] != whole.steps[5:]  # another order in each epoch


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
