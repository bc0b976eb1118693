"""The cached teacher is the live one: losses within a stated bound, and the network runs once for each view."""

import re

import pytest
import torch
from datasets import concatenate_datasets
from objectives_by_level import ON_LOGITS
from scan_job import Counted, packed
from toys import CLASSES, Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.data import add_high_energy
from hfkd.data.collate import ImageCollator, views_as_rows
from hfkd.data.transforms import ImageTransform
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.functional import energy, entropy
from hfkd.losses.items import image_items
from hfkd.losses.temperatures import Energy
from hfkd.teachers import CachedTeacher, FrozenTeacher
from hfkd.teachers.image_cache.device_store import DeviceStore

THRESHOLDS = (-9.0, -5.0)
BOUND = 1e-4  # of losses, energies and entropies, cached against live, relative to 1 + their size


both_stores = pytest.mark.parametrize("on_device", [False, True], ids=["file", "device"])


def batch_of(data, rows):
    return ImageCollator()(data.__getitems__(list(rows)))


def cached(tmp_path, data, net=None, on_device=False):
    net = net or Counted()
    made = CachedTeacher(FrozenTeacher(net), data, tmp_path, on_device=on_device)
    net.images = 0  # the one that told the number of classes
    return made


# ---- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ON_LOGITS)
@pytest.mark.parametrize("temperature", [1.0, 4.0, Energy(thresholds=THRESHOLDS)], ids=repr)
def test_losses_agree_with_the_live_teachers(tmp_path, name, temperature):
    data, live = packed(), FrozenTeacher(Counted())
    taught, batch = cached(tmp_path, data), batch_of(data, range(23))
    taught(**batch)
    loss = DistillationLoss(name, temperature, "entropy")
    losses = []
    for logits in (live(**batch), taught(**batch)):
        student = Net()(batch["pixel_values"])
        student.retain_grad()
        value, _ = loss(image_items(student, logits, batch["labels"]))
        value.backward()
        losses.append((value.detach(), student.grad))
    (live_loss, live_grad), (cached_loss, cached_grad) = losses
    torch.testing.assert_close(cached_loss, live_loss, rtol=BOUND, atol=BOUND)
    # Correlations (DIST) of a new student's nearly equal logits pass on ten times what the loss itself shows.
    torch.testing.assert_close(cached_grad, live_grad, rtol=10 * BOUND, atol=10 * BOUND)
    assert taught.hits == 23


@pytest.mark.parametrize("t", [1.0, 3.0, 4.0])
def test_energies_and_entropies_agree_with_the_live_teachers(tmp_path, t):
    data, live = packed(), FrozenTeacher(Counted())
    taught, batch = cached(tmp_path, data), batch_of(data, range(23))
    taught(**batch)
    for signal in (energy, entropy):
        torch.testing.assert_close(signal(taught(**batch), t), signal(live(**batch), t), rtol=BOUND, atol=BOUND)


@both_stores
def test_the_first_run_and_the_later_ones_get_the_same_bits(tmp_path, on_device):
    data = packed()
    taught, batch = cached(tmp_path, data, on_device=on_device), batch_of(data, range(23))
    assert torch.equal(taught(**batch), taught(**batch))
    assert (taught.rows, taught.hits) == (46, 23)


@both_stores
def test_nan_is_neither_kept_nor_hidden(tmp_path, on_device):
    data = packed()
    taught, batch = cached(tmp_path, data, on_device=on_device), batch_of(data, range(4))
    batch["pixel_values"][1] = float("nan")
    assert taught(**batch).isnan().any(1).tolist() == [False, True, False, False]
    taught.flush()
    assert taught.store.count() == 3


# ---- only what is missing --------------------------------------------------------------------------------------------


@both_stores
def test_the_network_sees_each_view_once_and_later_runs_none(tmp_path, on_device):
    data, net = packed(), Counted()
    taught, transform = cached(tmp_path, data, net, on_device), data.format["format_kwargs"]["transform"]
    seen = set()
    for epoch in range(4):
        transform.set_epoch(epoch)
        for rows in torch.randperm(23, generator=torch.Generator().manual_seed(epoch)).split(5):
            batch = batch_of(data, rows.tolist())
            expected = FrozenTeacher(Counted())(**batch)
            torch.testing.assert_close(taught(**batch), expected, rtol=BOUND, atol=BOUND)
            seen |= set(zip(batch["index"].tolist(), batch["view"].tolist(), strict=True))
    assert net.images == len(seen)
    assert (taught.rows, taught.hits) == (4 * 23, 4 * 23 - len(seen))
    taught.flush()
    assert taught.store.count() == len(seen)

    later, other = Counted(), packed(transform=ImageTransform(augment=True, seed=5))
    again = cached(tmp_path, other, later, on_device)
    for epoch in range(3):
        transform.set_epoch(epoch)
        again(**batch_of(data, range(23)))
    assert later.images == 0


@both_stores
def test_views_without_a_number_run_every_time_and_only_they(tmp_path, on_device):
    data, net = packed(), Counted()
    taught, batch = cached(tmp_path, data, net, on_device), batch_of(data, range(23))
    taught(**batch)
    net.images = 0
    mixed = batch | {"view": batch["view"].clone(), "pixel_values": batch["pixel_values"].clone()}
    mixed["view"][[2, 7]] = -1
    mixed["pixel_values"][[2, 7]] += 1
    for _ in range(2):
        expected = FrozenTeacher(Counted())(**mixed)
        torch.testing.assert_close(taught(**mixed), expected, rtol=BOUND, atol=BOUND)
    assert net.images == 4
    assert taught.store.count() == 23


@pytest.mark.parametrize("by_image", [False, True], ids=["view by view", "image by image"])
def test_two_views_of_each_image(tmp_path, by_image):
    data, net = packed(), Counted()
    taught, first = cached(tmp_path, data, net), batch_of(data, range(8))
    data.format["format_kwargs"]["transform"].set_epoch(1)
    second = batch_of(data, range(8))
    taught(**second)
    both = {k: torch.stack([first[k], second[k]], dim=1) for k in ("pixel_values", "view")}  # [B, 2, ...]
    if not by_image:
        both["pixel_values"] = both["pixel_values"].transpose(0, 1).flatten(0, 1)
    got = taught(**both, index=first["index"])
    live = FrozenTeacher(Counted())
    pair = torch.stack([live(**first), live(**second)])  # [2, B, C]
    expected = pair.transpose(0, 1) if by_image else pair.flatten(0, 1)
    torch.testing.assert_close(got, expected, rtol=BOUND, atol=BOUND)
    assert net.images == 16


def test_a_weak_and_a_strong_view(tmp_path):
    """The strong one has no number: it alone runs every time."""
    data, net = packed(transform=ImageTransform(augment=True, views=2)), Counted()
    taught, batch = cached(tmp_path, data, net), views_as_rows(batch_of(data, range(8)))
    for _ in range(2):
        torch.testing.assert_close(taught(**batch), FrozenTeacher(Counted())(**batch), rtol=BOUND, atol=BOUND)
    assert net.images == 16 + 8
    assert taught.store.count() == 8


def test_images_that_he_da_added_run_every_time_and_the_others_share_the_plain_runs_file(tmp_path):
    plain, net = packed(), Counted()
    cached(tmp_path, plain)(**batch_of(plain, range(23)))
    data = add_high_energy(plain, torch.linspace(-9, -3, 23), ratio=0.4)  # 9 added rows
    taught, batch = cached(tmp_path, data, net), batch_of(data, range(32))
    for seen in (9, 18):
        torch.testing.assert_close(taught(**batch), FrozenTeacher(Counted())(**batch), rtol=BOUND, atol=BOUND)
        assert net.images == seen
    assert taught.store.count() == 23


# ---- whose logits ----------------------------------------------------------------------------------------------------


def altered():
    net = Counted()
    with torch.no_grad():
        net.head.bias[0] += 1e-6
    return net


@pytest.mark.parametrize(
    ("net", "data"),
    [
        (altered(), packed()),
        (Counted(), packed(seed=1)),
        (Counted(), packed(transform=ImageTransform(augment=True, padding=2))),
        (Counted(), packed(transform=ImageTransform(augment=True, flip=False))),
        (Counted(), packed(transform=ImageTransform(augment=True, mean=(0.5, 0.5, 0.5)))),
    ],
    ids=["weights", "images", "padding", "flip", "normalisation"],
)
def test_another_teacher_data_or_view_set_has_another_file(tmp_path, net, data):
    mine = cached(tmp_path, packed())
    other = cached(tmp_path, data, net)
    assert other.store.path != mine.store.path
    same = cached(tmp_path, packed(transform=ImageTransform(augment=True, seed=9)))
    assert same.store.path == mine.store.path


def test_a_dataset_whose_views_have_no_numbers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="only for enumerable views: use a dataset of"):
        cached(tmp_path, Rows())
    twice = concatenate_datasets([packed().with_format(None), packed(seed=1).with_format(None)])
    twice.set_transform(ImageTransform(augment=True))
    with pytest.raises(ValueError, match="images of the training set share an `index`"):
        cached(tmp_path, twice)


def test_a_batch_that_cannot_be_looked_up_is_refused(tmp_path):
    data = packed()
    taught, batch = cached(tmp_path, data), batch_of(data, range(4))
    with pytest.raises(ValueError, match=r"a batch with \['labels', 'pixel_values'\] does not identify image"):
        taught(pixel_values=batch["pixel_values"], labels=batch["labels"])
    with pytest.raises(ValueError, match="index 23 is beyond the 23 images"):
        taught(**batch | {"index": batch["index"] + 20})


# ---- masks, and what no key tells ------------------------------------------------------------------------------------


class Masked(Counted):
    """Never trained on the last class, which it masks."""

    def __init__(self, mask, added=False):
        super().__init__()
        self.mask, self.added = mask, added

    def forward(self, x):
        logits = super().forward(x)
        last = logits[:, -1:] if self.added else torch.zeros_like(logits[:, -1:])
        return torch.cat([logits[:, :-1], last + self.mask], 1)


@both_stores
@pytest.mark.parametrize("objective", ["kd", "reverse_kl", "standardized"])
@pytest.mark.parametrize(("mask", "added"), [(-1e4, False), (-1e4, True), (-1e9, False), (-3.4e38, False)])
def test_a_masking_teacher_is_the_live_one(tmp_path, objective, mask, added, on_device):
    if objective != "kd" and mask < -1e9:
        pytest.skip("float32 holds no reverse divergence from there")
    losses = []
    for name, cache in (("live", None), ("cold", str(tmp_path / "c")), ("warm", str(tmp_path / "c"))):
        args = arguments(
            tmp_path / name, teacher_cache_dir=cache, teacher_cache_on_device=on_device and bool(cache), ce_weight=0.0
        )
        keywords = {"objective": objective, "temperature": 4.0}
        args.learning_rate = 0.0
        trainer = DistillationTrainer(Net(), Masked(mask, added), args, train_dataset=packed(), **keywords)
        trainer.train()
        losses.append([entry["kd"] for entry in trainer.state.log_history if "kd" in entry])
        if name == "warm":
            assert trainer.cached_teacher.hits == trainer.cached_teacher.rows > 0
    assert losses[1] == losses[2] == pytest.approx(losses[0], rel=BOUND)


def test_logits_that_two_bytes_do_not_tell_apart_are_refused_with_their_range(tmp_path):
    class Wild(Counted):
        def forward(self, x):
            return 1e4 * super().forward(x)

    args = arguments(tmp_path / "run", teacher_cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"logits of the first training image run from -\S+ to \S+, but 16 b"):
        DistillationTrainer(Net(), Wild(), args, train_dataset=packed())
    assert not (tmp_path / "cache").exists()


def test_a_later_row_that_does_not_fit_is_the_live_teachers(tmp_path, caplog):
    data = packed()
    taught, batch = cached(tmp_path, data), batch_of(data, range(4))
    wild = batch | {"pixel_values": batch["pixel_values"].clone()}
    wild["pixel_values"][2] *= 1e4
    taught.calls = 4  # the next two calls compare no images
    for _ in range(2):
        torch.testing.assert_close(taught(**wild), FrozenTeacher(Counted())(**wild), rtol=1e-4, atol=1e-3)
    assert taught.store.count() == 3
    assert "a range above 2048 are not stored" in caplog.text


class Levelled(Counted):
    """`level` is a whole number, as a count of calls is, and in no key."""

    level = 1

    def forward(self, x):
        return self.level * super().forward(x)


@both_stores
def test_a_file_that_the_teacher_disagrees_with_is_begun_anew(tmp_path, on_device, caplog):
    data, net = packed(), Levelled()
    batch = batch_of(data, range(23))
    before = cached(tmp_path, data, net, on_device)
    before(**batch)
    before.flush()
    assert cached(tmp_path, data, net, on_device).store.count() == 23
    assert caplog.messages == []
    net.level = 2
    taught = cached(tmp_path, data, net, on_device)
    torch.testing.assert_close(taught(**batch), FrozenTeacher(net)(**batch), rtol=BOUND, atol=1e-3)
    assert taught.hits == 0
    assert re.search(
        r"are not from this teacher: the logit \d of row \d+ in view \d+ was stored as \S+, but this", caplog.text
    )
    assert caplog.text.count("The file is replaced") == 1


# ---- in training -----------------------------------------------------------------------------------------------------


def run(tmp_path, name, net, data, **keywords):
    slots = {"temperature": Energy(thresholds=THRESHOLDS), "weighting": "entropy"}
    args = arguments(tmp_path / name, max_steps=6, evaluate_kl=True, **keywords)
    trainer = DistillationTrainer(Net(), net, args, train_dataset=data, eval_dataset=packed(seed=2), **slots)
    trainer.train()
    net.images = 0 if name == "warm" else net.images
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_training_with_the_cache_is_training_with_the_teacher(tmp_path):
    live, losses = run(tmp_path, "live", Counted(), packed())
    cold, cold_losses = run(tmp_path, "cold", Counted(), packed(), teacher_cache_dir=str(tmp_path / "cache"))
    assert live.cached_teacher is None
    assert cold.cached_teacher.hits == 0
    held = {"teacher_cache_dir": str(tmp_path / "cache"), "teacher_cache_on_device": True}
    warm, warm_losses = run(tmp_path, "warm", Counted(), packed(), **held)
    assert isinstance(warm.cached_teacher.store, DeviceStore)
    assert warm.cached_teacher.hits == warm.cached_teacher.rows == cold.cached_teacher.rows > 0
    assert warm_losses == cold_losses == pytest.approx(losses, rel=BOUND)
    for a, b in zip(warm.model.parameters(), cold.model.parameters(), strict=True):
        assert torch.equal(a, b)
    # Images of the evaluation set have the same index, and are not looked up.
    assert warm.evaluate()["eval_kl"] == pytest.approx(live.evaluate()["eval_kl"], rel=1e-3)
    assert warm.cached_teacher.teacher.model.images > 0


@pytest.mark.parametrize("temperature", ["energy(ratio=0.3)", "gradation"])
def test_an_image_at_a_threshold_gets_the_live_teachers_temperature(tmp_path, temperature):
    """Thresholds are fitted to these very views, so that an image's own energy would part live from stored."""
    data = packed(60, transform=ImageTransform())
    logs = []
    for name, cache in (("live", None), ("cold", str(tmp_path / "c")), ("warm", str(tmp_path / "c"))):
        epoch = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 1, "learning_rate": 0.0}
        args = arguments(tmp_path / name, teacher_cache_dir=cache, temperature=temperature, **epoch)
        trainer = DistillationTrainer(Net(), Counted(), args, train_dataset=data)
        trainer.train()
        logs.append([entry["temperature"] for entry in trainer.state.log_history if "temperature" in entry])
    assert len(logs[0]) == 60
    assert logs[0] == logs[1] == logs[2]


def test_when_training_ends_all_rows_are_in_the_file(tmp_path):
    held = {"teacher_cache_dir": str(tmp_path / "cache"), "teacher_cache_on_device": True}
    cached_teacher = run(tmp_path, "cold", Counted(), packed(), **held)[0].cached_teacher
    assert cached_teacher.store.file.count() == cached_teacher.rows - cached_teacher.hits > 0


def test_he_da_trains_with_the_cache_as_with_the_teacher(tmp_path):
    _, losses = run(tmp_path, "live", Counted(), packed(), he_da="paper")
    cold, cold_losses = run(tmp_path, "cold", Counted(), packed(), he_da="paper", teacher_cache_dir=str(tmp_path / "c"))
    assert cold_losses == pytest.approx(losses, rel=BOUND)
    assert 0 < cold.cached_teacher.store.count() < cold.cached_teacher.rows


def test_what_the_cache_cannot_serve_is_refused_when_the_trainer_is_built(tmp_path):
    args = arguments(tmp_path / "run", teacher_cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="only for enumerable views"):
        DistillationTrainer(Net(), teacher(), args, train_dataset=Rows())
    assert not (tmp_path / "cache").exists()


def test_a_compiled_teacher_gets_whole_batches(tmp_path):
    """A batch's unknown rows alone would be another size at each step, and each compiled anew."""
    data, sizes = packed(), []
    taught = CachedTeacher(FrozenTeacher(Counted()), data, tmp_path)
    taught(**batch_of(data, range(5)))
    taught.teacher.register_forward_pre_hook(lambda m, a, k: sizes.append(len(k["pixel_values"])), with_kwargs=True)
    live = taught.teacher
    for compiled, expected in ((False, 18), (True, 23)):
        if compiled:
            live.compile(backend="eager")
        file = taught.store.path.read_bytes()
        got = taught(**batch_of(data, range(23)))
        torch.testing.assert_close(got, live(**batch_of(data, range(23))), rtol=BOUND, atol=BOUND)
        assert sizes[0] == expected
        sizes.clear()
        taught.store.path.write_bytes(file)  # as before: five are known


# ---- images that are changed after the transform ---------------------------------------------------------------------


def mixing(rows):
    """A collator with MixUp, that keeps `index` and `view`."""
    batch = ImageCollator()(rows)
    shares = torch.nn.functional.one_hot(batch["labels"], CLASSES).float()
    mixed = {"pixel_values": batch["pixel_values"], "labels": shares}
    return batch | {name: (values + values.flip(0)) / 2 for name, values in mixed.items()}


class MixingInTheStep(DistillationTrainer):
    def compute_loss(self, model, inputs, *arguments, **keywords):
        images = inputs["pixel_values"]
        return super().compute_loss(model, inputs | {"pixel_values": images.flip(0)}, *arguments, **keywords)


class Erasing(ImageTransform):
    def __call__(self, batch):
        made = super().__call__(batch)
        made["pixel_values"][:, :, 2:5, 2:5] = 0
        return made


@pytest.mark.parametrize(
    ("kind", "collate", "transform"),
    [
        (DistillationTrainer, mixing, ImageTransform),
        (MixingInTheStep, None, ImageTransform),
        (DistillationTrainer, None, Erasing),
    ],
)
def test_images_that_are_changed_after_the_transform_get_no_stored_logits(tmp_path, kind, collate, transform):
    data = packed(transform=transform(augment=True))
    args = arguments(tmp_path / "run", teacher_cache_dir=str(tmp_path / "cache"))
    trainer = kind(Net(), teacher(), args, train_dataset=data, data_collator=collate)
    with pytest.raises(ValueError, match="is not what the dataset's transform makes of it"):
        trainer.train()


def test_changed_images_without_a_number_are_computed(tmp_path):
    data, net = packed(), Counted()
    taught = cached(tmp_path, data, net)
    batch = batch_of(data, range(8))
    batch["pixel_values"][:4] += 1
    batch["view"][:4] = -1
    taught(**batch), taught(**batch)
    assert (net.images, taught.hits) == (8 + 4, 4)


def test_images_that_are_mixed_now_and_then_are_found(tmp_path):
    data = packed()
    taught = cached(tmp_path, data)
    taught(**batch_of(data, range(8)))
    batch = batch_of(data, range(8))
    batch["pixel_values"][5] = batch["pixel_values"][6]
    with pytest.raises(ValueError, match="the image of index 5 and view"):
        taught(**batch)
