"""What the ranks of a run begin with: a difference is raised on all of them, at once and in words."""

import json
import os
from datetime import timedelta
from pathlib import Path

import torch
from processes import on_ranks
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.training import found_batch_size

BY_STEPS = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 3, "eval_steps": 3}
UNEVEN = {"accelerator_config": {"even_batches": False}, "per_device_train_batch_size": 4, "max_steps": -1}


def this_rank():
    return int(os.environ["RANK"])


class Share(torch.utils.data.Dataset):
    """The rows of this rank, as of `dataset.shard`."""

    def __init__(self):
        self.rows = Rows(32)

    def __len__(self):
        return 16

    def __getitem__(self, i):
        return self.rows[2 * i + this_rank()]


class Crowded(Net):
    """A network for which there is no memory on some ranks."""

    def __init__(self, ranks):
        super().__init__()
        self.ranks, self.calls = ranks, 0

    def forward(self, x):
        self.calls += self.training
        if self.calls > 1 and len(x) == 8 and self.training and this_rank() in self.ranks:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)


def trainer(folder, rows=None, student=None, **settings):
    sets = {"train_dataset": rows or Rows(32), "eval_dataset": Rows(13, seed=3)}
    return DistillationTrainer(student or Net(), teacher(), arguments(folder, **settings), **sets)


def with_loaders_of_other_lengths(folder):
    made, rows = trainer(folder, max_steps=-1), Rows(32)
    mine = [rows[i] for i in range(8 + 16 * this_rank())]
    made.get_train_dataloader = lambda: torch.utils.data.DataLoader(mine, 8, collate_fn=made.data_collator)
    made.train()


CASES = {
    "rows": lambda folder: trainer(folder, Share()).train(),
    "seeds": lambda folder: trainer(folder, seed=this_rank()).train(),
    "lengths": with_loaders_of_other_lengths,
    "folders": lambda folder: trainer(f"{folder}-{this_rank()}", **BY_STEPS, load_best_model_at_end=True).train(),
    "batches": lambda folder: trainer(folder, Rows(20), **UNEVEN),
    "scored": lambda folder: trainer(folder, **UNEVEN).evaluate(),
}
SAID = {
    "rows": "rank 1 has other training rows (16 rows, ",
    "seeds": "rank 1 has seed=1 and rank 0 seed=0, but the processes of a run take the same steps",
    "lengths": "the training loader of rank 1 gives 9 steps, and that of rank 0 3 steps",
    "folders": "of rank 1 is not the folder of rank 0, to which checkpoints are written, so that it could not load",
    "batches": "leaves the last batch of the 20 rows of train_dataset to some of the 2 processes",
    "scored": "leaves the last batch of the 13 rows of eval_dataset to some of the 2 processes",
}


def refused(folder):
    """The messages on this rank; then a run that all ranks begin anew with smaller batches."""
    found = {}
    for name, run in CASES.items():
        try:
            run(f"{folder}/{name}")
        except ValueError as error:
            found[name] = str(error)
    run = trainer(f"{folder}/crowded", student=Crowded((0, 1)), auto_find_batch_size=True)
    run.train()
    found["size"] = run.state.train_batch_size
    Path(f"{folder}/said-{this_rank()}.json").write_text(json.dumps(found))


def test_a_difference_is_raised_on_all_ranks(tmp_path):
    codes = on_ranks(tmp_path / "log", 2, refused, str(tmp_path))
    assert codes == [0, 0], (tmp_path / "log-0").read_text()[-2000:]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"said-{rank}.json").read_text())
        assert found.pop("size") < 8
        assert found.keys() == SAID.keys()
        for name, words in SAID.items():
            assert words in found[name], found[name]


def crowded_on_one(folder):
    found_batch_size.PATIENCE = timedelta(seconds=2)
    trainer(folder, student=Crowded((1,)), auto_find_batch_size=True).train()


def test_a_rank_that_alone_has_no_memory_ends_the_run(tmp_path):
    """It started anew with smaller batches, and the other waited for it in a step of the larger ones."""
    codes = on_ranks(tmp_path / "log", 2, crowded_on_one, str(tmp_path / "run"))
    assert codes == [1, 1]
    assert "rank 1 has no memory for step 2 with batches of 8" in (tmp_path / "log-1").read_text()
