"""The first batch of a stream, or of a loader of one's own: looked at when training starts, and trained on as well."""

from pathlib import Path

import pytest
import torch
from processes import on_ranks, script
from text_toys import TokenRows, language_model, taught_model
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer

FITNET = "kd + fitnet(layer='conv')"
SEQUENTIAL = {"train_sampling_strategy": "sequential", "objective": FITNET, "num_train_epochs": 2, "max_steps": -1}


class Dropping(Net):
    """Draws random numbers in each step, so that one drawn too many beforehand is seen."""

    def forward(self, x):
        return self.head(torch.dropout(torch.relu(self.conv(x)).mean((2, 3)), 0.5, self.training))


class Stream(torch.utils.data.IterableDataset):
    """Rows in order, each worker's own; `once`: they are gone when they have been read."""

    def __init__(self, once=False):
        self.rows, self.once = iter(Rows()) if once else Rows(), once

    def __iter__(self):
        if self.once:
            yield from self.rows
            return
        worker = torch.utils.data.get_worker_info()
        mine = range(worker.id, len(self.rows), worker.num_workers) if worker else range(len(self.rows))
        yield from (self.rows[i] for i in mine)

    def __len__(self):
        return len(Rows())


class Unending(torch.utils.data.IterableDataset):
    """Twenty rows in order, five batches of four, and no length."""

    def __iter__(self):
        rows = Rows(20)
        yield from (rows[i] for i in range(len(rows)))


class Words(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from TokenRows().rows


class Seeing(DistillationTrainer):
    """Keeps the labels of each batch that it trains on."""

    def __init__(self, *arguments, loader=None, **keywords):
        super().__init__(*arguments, **keywords)
        self.loader, self.seen = loader, []  # after the constructor, as users write it

    def get_train_dataloader(self):
        return super().get_train_dataloader() if self.loader is None else self.loader()

    def training_step(self, model, inputs, *others):
        self.seen.append(inputs["pixel_values"][:, 0, 0, 0].tolist())
        return super().training_step(model, inputs, *others)


class Endless:
    """A loader that is no data set: batches, and no length."""

    def __init__(self, dataset):
        self.dataset_of_mine = dataset

    def __iter__(self):
        while True:
            yield from batches(self.dataset_of_mine)


def batches(rows, shuffle=False, **more):
    return torch.utils.data.DataLoader(rows, 8, shuffle, **more)


LOADERS = {
    "a list": lambda: list(batches(Rows())),
    "a loader": lambda: batches(Rows()),
    "a loader with workers": lambda: batches(Rows(), num_workers=1),
    "a loader of a stream": lambda: batches(Stream()),
    "no length": lambda: Endless(Rows()),
}


def trained(folder, loader=None, rows=None, resume=None, student=Dropping, taught=None, **settings):
    args = arguments(folder, **SEQUENTIAL | settings)
    trainer = Seeing(student(), taught or teacher(), args, train_dataset=rows, loader=loader)
    torch.manual_seed(5)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def same(one, other):
    assert one.seen == other.seen
    learned = [{**t.model.state_dict(), **t.distillation_loss.state_dict()} for t in (one, other)]
    assert learned[0].keys() == learned[1].keys()
    assert any("objective" in key for key in learned[0])
    for key, value in learned[0].items():
        torch.testing.assert_close(learned[1][key], value, rtol=0, atol=0, msg=key)


@pytest.fixture(scope="module")
def by_number(tmp_path_factory):
    """Two epochs of four batches of rows by number; of a student that draws random numbers, and of one without."""
    return {kind: trained(tmp_path_factory.mktemp("run"), rows=Rows(), student=kind) for kind in (Dropping, Net)}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * ("workers" in n)) for n in LOADERS])
def test_a_loader_of_ones_own_trains_what_a_dataset_does(tmp_path, by_number, name):
    kind = Dropping if "loader" in name else Net  # torch's loaders draw a number an epoch, a list none
    settings = {"max_steps": 8} if name == "no length" else {}
    same(by_number[kind], trained(tmp_path, LOADERS[name], student=kind, **settings))


ONCE = ["a generator", "a stream that is spent", "a stream", "a stream with workers"]


@pytest.mark.parametrize("name", ONCE[:2] + [pytest.param(name, marks=pytest.mark.slow) for name in ONCE[2:]])
def test_what_is_read_once_trains_its_first_batch_too(tmp_path, by_number, name):
    """An epoch of it is the first of rows by number."""
    once = iter(batches(Rows()))
    loader = (lambda: once) if name == "a generator" else None
    rows = {"a stream": Stream, "a stream with workers": Stream, "a stream that is spent": lambda: Stream(True)}
    settings = {"dataloader_num_workers": 2} if "workers" in name else {}
    settings |= {"num_train_epochs": 1, "max_steps": 4, "student": Net}
    found = trained(tmp_path, loader, rows[name]() if name in rows else None, **settings)
    seen = [value for batch in found.seen for value in batch]
    wanted = [float(Rows()[i]["pixel_values"][0, 0, 0]) for i in range(32)]
    assert sorted(seen) == sorted(wanted)
    if "workers" not in name:
        same(trained(tmp_path / "by_number", rows=Rows(), num_train_epochs=1, student=Net), found)


RESUMED = [(name, stop) for name in [*LOADERS, "a stream", "shuffled"] for stop in (3, 4, 6)]
QUICK = [("a list", 3), ("a stream", 6)]


@pytest.mark.parametrize(
    ("name", "stop"), [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in RESUMED]
)
def test_a_resumed_run_goes_on_with_the_batch_that_is_next(tmp_path, name, stop, caplog):
    loaders = LOADERS | {"a stream": None, "shuffled": lambda: batches(Rows(), True)}
    rows = Stream() if name == "a stream" else None
    kind = Net if name == "no length" else Dropping  # each pass of it draws a number, which a checkpoint has or not
    settings = {"save_strategy": "steps", "save_steps": stop, "max_steps": 8, "student": kind}
    whole = trained(tmp_path, loaders[name], rows, **settings)
    resumed = trained(tmp_path, loaders[name], rows, str(tmp_path / f"checkpoint-{stop}"), **settings)
    assert len(resumed.seen) == 8 - stop
    unknown = name == "shuffled" and stop == 6  # in a later epoch: what it was shuffled by is not known any more
    assert ("the rest of this epoch is in another order" in caplog.text) == unknown
    whole.seen = whole.seen[stop:]
    if not unknown:
        same(whole, resumed)


IN_FOURS = {"per_device_train_batch_size": 4, "max_steps": 8, "student": Net}


def round_and_round():
    """The batches of `Unending` without end, so that a step never meets the end of a pass."""
    while True:
        yield from torch.utils.data.DataLoader(Unending(), 4)


@pytest.mark.parametrize("group", [2, 3, 7])
def test_a_step_at_the_end_of_a_stream_without_length_is_one_of_as_many_batches(tmp_path, group):
    """What is left of a pass was added to the first step of the next one, as a step of its own."""
    settings = IN_FOURS | {"gradient_accumulation_steps": group}
    found = trained(tmp_path / "stream", rows=Unending(), **settings)
    endless = round_and_round()
    same(trained(tmp_path / "endless", lambda: endless, **settings), found)
    losses = [entry["loss"] for entry in found.state.log_history if "loss" in entry]
    assert len(losses) == 8


@pytest.mark.parametrize(
    ("stop", "group"), [(7, 1), (5, 1), (4, 2)] + [pytest.param(s, 2, marks=pytest.mark.slow) for s in (3, 5, 6)]
)
def test_a_run_on_a_stream_without_length_is_resumed_in_a_later_pass(tmp_path, stop, group):
    settings = IN_FOURS | {"gradient_accumulation_steps": group, "save_strategy": "steps", "save_steps": stop}
    whole = trained(tmp_path, rows=Unending(), **settings)
    resumed = trained(tmp_path, rows=Unending(), resume=str(tmp_path / f"checkpoint-{stop}"), **settings)
    whole.seen = whole.seen[stop * group :]
    same(whole, resumed)
    assert resumed.state.epoch == whole.state.epoch


def test_a_spent_generator_cannot_be_resumed(tmp_path):
    settings = IN_FOURS | {"save_strategy": "steps", "save_steps": 6}
    trained(tmp_path, rows=Unending(), **settings)
    once = iter(torch.utils.data.DataLoader(Unending(), 4))
    with pytest.raises(ValueError, match="ended 1 batches before the 6 that had been trained on at the checkpoint"):
        trained(tmp_path, lambda: once, resume=str(tmp_path / "checkpoint-6"), **settings)


def test_a_text_stream_has_its_features_read(tmp_path):
    """As many positions as the first rows have; the hidden states are matched."""
    found = []
    for rows in (TokenRows(), Words()):
        args = arguments(tmp_path / type(rows).__name__, train_sampling_strategy="sequential")
        trainer = DistillationTrainer(
            language_model(), taught_model(), args, train_dataset=rows, objective="kd + hidden_mse(layers=1)"
        )
        trainer.train()
        found.append([entry["hidden_mse"] for entry in trainer.state.log_history if "hidden_mse" in entry])
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_rows_without_labels_need_none_where_nothing_reads_them(tmp_path):
    unlabelled = [{"pixel_values": batch["pixel_values"]} for batch in batches(Rows())]
    mine, plain = (
        trained(tmp_path / str(n), lambda b=b: b, student=Net, ce_weight=0.0, kd_weight=1.0)
        for n, b in enumerate((unlabelled, list(batches(Rows()))))
    )
    same(mine, plain)
    assert "ce" not in mine.state.log_history[1]
    for settings, message in (
        ({}, r"have no labels .they have .'pixel_values'.., but ce_weight=0.1 needs"),
        ({"ce_weight": 0.0, "objective": "dkd"}, "reads labels, but the training rows have none"),
    ):
        with pytest.raises(ValueError, match=message):
            trained(tmp_path / "refused", lambda: unlabelled, **settings)
    assert not [*tmp_path.glob("refused/*")]


class Named(Net):
    def __init__(self):
        super().__init__(16)

    def get_classifier(self):
        return self.head


LSH = {"objective": "lsh", "student": Named, "taught": Named()}


def labelled(batch):
    batch["labels"] = batch["labels"] + 3
    return batch


@pytest.mark.parametrize(
    ("loader", "settings", "message"),
    [
        (lambda: [], {}, "the training loader, a list, yields no batch"),
        (lambda: iter(()), {"max_steps": 2}, "yields no batch"),
        (
            lambda: [(torch.zeros(2, 3, 8, 8), torch.zeros(2))],
            {},
            "first batch is a tuple: yield dicts with the argument names",
        ),
        (
            lambda: map(labelled, batches(Rows())),
            {"max_steps": 2},
            "label 5 of row 2 of a batch is out of range: the student has 5 classes",
        ),
        (lambda: batches(Rows()), {"taught": teacher(7)}, "the teacher has 7 classes and the student 5"),
        (lambda: batches(Rows()), {"objective": "fitnet(layer='stem')"}, "has no such module"),
        (lambda: batches(Rows()), {"objective": "crd"}, "is a stream of unknown length"),
        (lambda: batches(Rows()), LSH, "may be endless: pass a map-style train_dataset"),
    ],
)
def test_what_the_first_batch_shows_is_told_before_anything_is_written(tmp_path, loader, settings, message):
    with pytest.raises(ValueError, match=message):
        trained(tmp_path / "run", loader, **settings)
    assert not [*tmp_path.glob("run/*")]


@pytest.mark.slow
def test_each_rank_looks_at_its_own_first_batch(tmp_path):
    found = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        out.mkdir()
        job = Path(__file__).parents[1] / "habit_job.py"
        codes = on_ranks(out / "log", ranks, script, job, str(out), "loader", "4")
        assert codes == [0] * ranks, "\n".join(path.read_text()[-2000:] for path in out.glob("log*"))
        found.append(torch.load(out / "student.pt", weights_only=True))
    learned = {
        key for key in found[0] if ".bn." not in key or key.endswith(("weight", "bias"))
    }  # each rank's own means
    for key in learned:
        torch.testing.assert_close(found[1][key], found[0][key], rtol=0, atol=1e-6, msg=key)


class Crowded(Net):
    """Has memory for four images."""

    def forward(self, x):
        if self.training and len(x) > 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)


LESS = {"auto_find_batch_size": True, "max_steps": 6, "gradient_accumulation_steps": 2}  # 5, of which 10 % are left out


@pytest.mark.parametrize("name", ["a stream", "a loader"])
def test_a_smaller_batch_is_read_as_the_first_one_is(tmp_path, name):
    """What was left of a pass of a stream was added to the first step of the next one; rows without labels failed."""
    found = []
    for size, kind in ((4, Net), (5, Crowded)):
        settings = LESS | {"per_device_train_batch_size": size, "student": kind}
        folder = tmp_path / kind.__name__
        if name == "a stream":
            found.append(trained(folder, rows=Unending(), **settings))
            continue
        settings |= {"objective": "kd", "ce_weight": 0.0, "kd_weight": 1.0}
        found.append(Unlabelled.trained(folder, **settings))
    found[1].seen = found[1].seen[1:]  # that there was no memory for
    states = [trainer.model.state_dict() for trainer in found]
    assert found[0].seen == found[1].seen
    assert len(found[0].seen) == {"a stream": 12, "a loader": 10}[name]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


class Unlabelled(Seeing):
    """A loader of images alone, in batches of the size that was found."""

    def get_train_dataloader(self):
        images = [{"pixel_values": row["pixel_values"]} for row in map(Rows(20).__getitem__, range(20))]
        return torch.utils.data.DataLoader(images, self._train_batch_size)

    @classmethod
    def trained(cls, folder, student, **settings):
        trainer = cls(student(), teacher(), arguments(folder, **SEQUENTIAL | settings))
        trainer.train()
        return trainer


def test_a_resumed_stream_goes_on_with_the_batch_size_that_was_found(tmp_path):
    settings = LESS | {"per_device_train_batch_size": 5, "student": Crowded, "save_strategy": "steps", "save_steps": 4}
    whole = trained(tmp_path, rows=Unending(), **settings)
    resumed = trained(tmp_path, rows=Unending(), resume=str(tmp_path / "checkpoint-4"), **settings)
    assert resumed.seen == whole.seen[-4:]


def test_a_batch_that_was_found_too_small_to_compare_its_rows_is_refused(tmp_path):
    class NoMemory(Net):
        def forward(self, x):
            if self.training and len(x) > 1:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().forward(x)

    settings = {"auto_find_batch_size": True, "per_device_train_batch_size": 3, "objective": "rkd", "student": NoMemory}
    with pytest.raises(ValueError, match="compares the rows of a batch with each other and needs at least"):
        trained(tmp_path, rows=Rows(), **settings)


def test_steps_that_are_taken_twice_as_memory_ran_out_in_between_are_said(tmp_path, caplog):
    class Shrinking(Net):
        steps = 0

        def forward(self, x):
            self.steps += self.training
            if self.training and self.steps > 2 and len(x) > 4:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().forward(x)

    for size in (4, 5):
        settings = {"auto_find_batch_size": True, "per_device_train_batch_size": size, "student": Shrinking}
        trained(tmp_path / str(size), rows=Rows(), **settings)
        said = "starts again at step 0 with smaller ones, but with the weights and the optimizer of step 2"
        assert (said in caplog.text) == (size == 5)
