"""One pass of the teacher: the right numbers, in order, found again only where they belong."""

import logging
import math
import os
import re
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image
from processes import on_ranks, script
from safetensors import safe_open
from safetensors.torch import save_file
from scan_job import Counted, packed
from text_toys import taught_model, token_dataset
from torch import nn
from torch.utils.data import Subset
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.data.collate import ImageCollator
from hfkd.data.large_images import LargeImageTransform, load_large_images
from hfkd.data.text_collate import TokenCollator
from hfkd.data.transforms import ImageTransform
from hfkd.losses.temperatures import Energy
from hfkd.models import InputSpec
from hfkd.tasks.causal_lm import CausalLM
from hfkd.teachers import FrozenTeacher, TeacherScan, scan
from hfkd.teachers.agreement import PROBED

QUIET = {"progress_bar": False}


def naive(net, images, t_e=4.0, t_h=3.0):
    """Energy, entropy and class of each image, one at a time, in the papers' notation."""
    energies, entropies, classes = [], [], []
    for image in images:
        z = net(image[None])[0].double().tolist()
        energies.append(-t_e * math.log(sum(math.exp(x / t_e) for x in z)))
        total = sum(math.exp(x / t_h) for x in z)
        p = [math.exp(x / t_h) / total for x in z]
        entropies.append(-sum(q * math.log(q) for q in p if q > 0))
        classes.append(z.index(max(z)))
    return TeacherScan(torch.tensor(energies), torch.tensor(entropies), torch.tensor(classes))


def same(a, b, atol=0.0):
    return all(
        torch.allclose(x.double(), y.double(), rtol=0, atol=atol)
        for x, y in zip(*([one.energy, one.entropy, one.prediction] for one in (a, b)), strict=True)
    )


# ---- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t_e", "t_h"), [(4.0, 3.0), (1.0, 1.0)])
def test_the_formulas_in_the_order_of_the_dataset(t_e, t_h):
    rows = Rows(23)
    result = scan(teacher(), rows, energy_temperature=t_e, entropy_temperature=t_h, batch_size=4, **QUIET)
    expected = naive(teacher(), rows.images, t_e, t_h)
    assert same(result, expected, atol=1e-4)
    assert result.energy.shape == (23,)
    assert result.energy.dtype == result.entropy.dtype == torch.float32
    assert result.prediction.dtype == torch.int64
    assert not same(result, naive(teacher(), rows.images.flip(0), t_e, t_h), atol=1e-1)


@pytest.mark.parametrize(("ratio", "outside"), [(0.2, 8), (0.1, 4), (0.26, 10)])
def test_the_thresholds_leave_floor_n_r_images_on_each_side(ratio, outside):
    energies = scan(teacher(), packed(41), **QUIET).energy
    slot = Energy(ratio=ratio)
    slot.fit(energies)
    low, high = slot.thresholds
    assert outside == math.floor(41 * ratio)
    assert (energies < low).sum() == (energies > high).sum() == outside


def test_batch_size_and_workers_change_nothing():
    data = packed(23)
    whole = scan(teacher(), data, **QUIET)
    assert same(whole, scan(teacher(), data, batch_size=5, **QUIET), atol=1e-5)
    assert same(whole, scan(teacher(), data, batch_size=5, num_workers=2, **QUIET), atol=1e-5)


def test_augmented_and_clean_views():
    data = packed(23)
    transform = data.format["format_kwargs"]["transform"]
    images = data[:]["pixel_values"]
    clean = data.with_transform(transform.clean())[:]["pixel_values"]
    assert same(scan(teacher(), data, **QUIET), naive(teacher(), images), atol=1e-4)
    assert same(scan(teacher(), data, views="clean", **QUIET), naive(teacher(), clean), atol=1e-4)
    assert not same(naive(teacher(), images), naive(teacher(), clean), atol=1e-3)
    assert data.format["format_kwargs"]["transform"] is transform
    assert transform.augment


def test_the_views_are_the_first_epochs_whenever_the_scan_runs(tmp_path):
    data = packed(23)
    transform = data.format["format_kwargs"]["transform"]
    first = scan(teacher(), data, **QUIET)
    transform.set_epoch(3)
    assert same(scan(teacher(), data, **QUIET), first)
    assert int(transform.epoch) == 3
    assert not same(naive(teacher(), data[:]["pixel_values"]), first, atol=1e-3)


@pytest.mark.parametrize(
    ("dataset", "views", "message"),
    [
        (Rows(), "clean", "views='clean' needs a dataset with an hfkd ImageTransform"),
        (packed().with_format("torch"), "clean", "views='clean' needs"),
        (packed(), "dirty", "views='dirty' must be 'train' or 'clean'"),
    ],
)
def test_views_that_cannot_be_had(dataset, views, message):
    with pytest.raises(ValueError, match=message):
        scan(teacher(), dataset, views=views, **QUIET)


def test_columns_for_the_dataset():
    data = packed(9)
    result = scan(teacher(), data, **QUIET)
    table = result.add_to(data).with_format("torch")
    assert set(table.column_names) == {"pixels", "labels", "index", "teacher_energy", "teacher_entropy"}
    assert torch.equal(table["teacher_energy"][:], result.energy)
    assert torch.equal(table["teacher_entropy"][:], result.entropy)
    assert "teacher_energy" not in data.column_names


class Breaks(Net):
    """Gives a broken logit for the images whose first pixel is large."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        logits = super().forward(x)
        logits[x[:, 0, 0, 0] > 50, 2] = self.value
        return logits


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_teacher_is_said_with_the_rows(value, tmp_path):
    rows = Rows(23)
    rows.images[[3, 17], 0, 0, 0] = 99.0
    with pytest.raises(
        ValueError, match=r"logits are NaN or infinite for 2 of 23 .*\(first at rows \[3, 17\]\): check"
    ):
        scan(Breaks(value), rows, batch_size=4, cache_dir=tmp_path, **QUIET)
    assert os.listdir(tmp_path) == []


def test_random_transforms_start_from_the_seed_and_leave_the_generator_alone():
    def jitter(rows):
        images = [torch.randn(3, 8, 8) for _ in rows["labels"]]
        return {"pixel_values": images, "labels": rows["labels"]}

    data = Dataset.from_dict({"labels": [0] * 9}).with_transform(jitter)
    net, state = teacher(), torch.get_rng_state()
    first = scan(net, data, seed=1, **QUIET)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(3)
    assert same(scan(net, data, seed=1, **QUIET), first)
    assert not same(scan(net, data, seed=2, **QUIET), first, atol=1e-3)


def test_a_teacher_without_parameters_and_a_compiled_one():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    rows = Rows(5)
    assert same(scan(Mean(), rows, **QUIET), naive(Mean(), rows.images), atol=1e-4)
    compiled = FrozenTeacher(teacher())
    compiled.compile(backend="eager")  # as `place` does under torch_compile
    assert same(scan(compiled, rows, **QUIET), naive(teacher(), rows.images), atol=1e-4)


# ---- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path):
    """A scan in a cache, and the teacher that made it."""
    net = Counted()
    result = scan(net, packed(), cache_dir=tmp_path / "cache", **QUIET)
    assert net.images == 23
    (file,) = (tmp_path / "cache").iterdir()
    return net, result, file


def again(file, net=None, data=None, **keywords):
    """Scan once more. Returns the result and how many images the teacher saw."""
    net = net or Counted()
    before = net.images
    result = scan(net, data or packed(), cache_dir=file.parent, **(QUIET | keywords))
    return result, net.images - before


def test_a_second_scan_asks_the_cache(cached, caplog):
    net, result, file = cached
    with caplog.at_level(logging.INFO, "hfkd"):
        for teacher_at_hand in (net, Counted()):
            found, images = again(file, teacher_at_hand)
            assert images == PROBED
            assert same(found, result)
    assert f"Using the teacher scan in {file}" in caplog.text
    assert [r for r in caplog.records if r.levelno > logging.INFO] == []


def other_weights():
    net = Counted()
    net.head.bias.data[0] += 1e-6
    return net


class Strided(Counted):
    """The same weights, used otherwise."""

    def __init__(self):
        super().__init__()
        self.conv.stride = (2, 2)


def plain_collate(rows):
    return ImageCollator()(rows)


def last_row_differs():
    data = packed()
    rows = data.with_format(None)[:]
    rows["pixels"][-1] = rows["pixels"][-1][:-1] + b"\x00"
    return Dataset.from_dict(rows).with_transform(data.format["format_kwargs"]["transform"])


OTHERS = {
    "a weight": lambda: {"net": other_weights()},
    "a stride": lambda: {"net": Strided()},
    "the last pixel": lambda: {"data": last_row_differs()},
    "the order": lambda: {"data": packed().select(range(22, -1, -1))},
    "fewer rows": lambda: {"data": packed().select(range(20))},
    "normalisation": lambda: {"data": packed(transform=ImageTransform(augment=True, mean=(0.5, 0.5, 0.5)))},
    "padding": lambda: {"data": packed(transform=ImageTransform(augment=True, padding=2))},
    "augmentation": lambda: {"data": packed(transform=ImageTransform())},
    "the views' seed": lambda: {"data": packed(transform=ImageTransform(augment=True, seed=1))},
    "views": lambda: {"views": "clean"},
    "T_E": lambda: {"energy_temperature": 1.0},
    "T'": lambda: {"entropy_temperature": 1.0},
    "seed": lambda: {"seed": 1},
    "collator": lambda: {"collate": plain_collate},
}


@pytest.mark.parametrize("what", OTHERS)
def test_whatever_differs_is_scanned_anew_and_kept_beside(cached, what):
    _, result, file = cached
    keywords = OTHERS[what]()
    fresh, images = again(file, **keywords)
    assert images == len(fresh.energy) == len(keywords.get("data", range(23)))
    assert len(list(file.parent.iterdir())) == 2
    assert again(file)[1] == PROBED
    assert again(file, **OTHERS[what]())[1] == PROBED
    if what not in ("a weight", "the last pixel", "seed", "collator", "the order"):
        assert len(fresh.energy) != 23 or not same(fresh, result, atol=1e-4)


def test_another_normalisation_of_the_teacher_is_another_scan(cached):
    _, _, file = cached
    net = Counted()
    specs = [InputSpec((0.5,) * 3, (0.2,) * 3, None), InputSpec((0.4,) * 3, (0.2,) * 3, None)]
    live = FrozenTeacher(net, *specs)
    assert again(file, live.model)[1] == PROBED
    scan(live, packed(), cache_dir=file.parent, **QUIET)
    assert net.images == PROBED + 23


def as_another_key(path):
    """A whole, sound scan, but of something else: a copy under the wrong name."""
    other = path.parent / "other"
    scan(teacher(), packed(seed=9), cache_dir=other, **QUIET)
    (source,) = other.iterdir()
    source.replace(path)
    other.rmdir()


def foreign(path, checksum=False, **tensors):
    digest = xxhash.xxh3_64_hexdigest(b"".join(t.numpy().tobytes() for t in tensors.values())) if checksum else ""
    save_file(tensors, path, {"checksum": digest, "key": "{}"})


def flipped(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


LONG = torch.zeros(23, dtype=torch.int64)
DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "not safetensors": lambda path: path.write_text("notes to myself"),
    "a flipped bit in the numbers": lambda path: flipped(path, -5),
    "a flipped bit in an energy": lambda path: flipped(path, -23 * 4 - 3),
    "another scan": as_another_key,
    "other tensors": lambda path: foreign(path, weight=torch.zeros(3)),
    "other lengths": lambda path: foreign(path, energy=torch.zeros(3), entropy=torch.zeros(4), prediction=LONG),
    "no dimension": lambda path: foreign(
        path, True, energy=torch.zeros(()), entropy=torch.zeros(()), prediction=torch.zeros((), dtype=torch.int64)
    ),
    "fewer rows": lambda path: foreign(path, True, energy=torch.zeros(3), entropy=torch.zeros(3), prediction=LONG[:3]),
    "half precision": lambda path: foreign(
        path, energy=torch.zeros(23).bfloat16(), entropy=torch.zeros(23).bfloat16(), prediction=LONG
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_or_foreign_file_is_noticed_redone_and_said(cached, caplog, what):
    _, result, file = cached
    DAMAGE[what](file)
    with caplog.at_level(logging.WARNING, "hfkd"):
        fresh, images = again(file)
    assert images == 23
    assert same(fresh, result)
    (said,) = caplog.messages
    assert said.startswith(f"The teacher scan in {file} is not used: it")
    assert said.endswith(". Scanning again.")
    assert os.listdir(file.parent) == [file.name]
    assert again(file)[1] == PROBED


def test_no_flipped_bit_anywhere_gives_other_numbers_or_an_error(cached, caplog):
    _, result, file = cached
    content = file.read_bytes()
    for spot, bit in zip(range(0, len(content), 11), cycle((0x01, 0x20, 0x80))):
        damaged = bytearray(content)
        damaged[spot] ^= bit
        file.write_bytes(damaged)
        assert same(again(file)[0], result), f"byte {spot} ^ {bit}"
    assert "its checksum is wrong" in caplog.text
    assert "it belongs to another teacher, dataset or transform" in caplog.text
    assert "it cannot be read" in caplog.text


def test_a_write_that_fails_leaves_nothing_half_done_and_the_scan_is_used(tmp_path, monkeypatch, caplog):
    """The default folder is in the home folder, which may be full or read-only where the run's is not."""

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    result = scan(Counted(), packed(), cache_dir=tmp_path, **QUIET)
    assert same(result, scan(Counted(), packed(), **QUIET))
    assert "The teacher scan is used, but not stored" in caplog.text
    assert "No space left on device; free some space" in caplog.text
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_none_does_not_end_a_run(tmp_path, caplog):
    (tmp_path / "scans").write_text("a file")
    assert same(scan(Counted(), packed(), cache_dir=tmp_path / "scans", **QUIET), scan(Counted(), packed(), **QUIET))
    assert "choose a folder that is writable" in caplog.text


def test_no_cache_folder_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (None, ""):
        scan(teacher(), packed(), cache_dir=folder, **QUIET)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("data", [Rows(23), Subset(packed(), range(23))], ids=["torch", "subset"])
def test_a_dataset_whose_content_has_no_name_is_not_cached(tmp_path, data):
    net = Counted()
    results = [scan(net, data, cache_dir=tmp_path, **QUIET) for _ in range(2)]
    assert net.images == 46
    assert same(*results)
    assert os.listdir(tmp_path) == []


def test_a_transform_that_cannot_be_hashed_is_not_cached(tmp_path, caplog):
    class Unhashable:
        def __reduce__(self):
            raise RuntimeError("holds an open file")

        def __call__(self, rows):
            return ImageCollator()(rows)

    net = Counted()
    for _ in range(2):
        scan(net, packed(), collate=Unhashable(), cache_dir=tmp_path, **QUIET)
    assert net.images == 46
    assert "The teacher scan is not cached: the transform or the collator cannot be hashed" in caplog.text
    assert os.listdir(tmp_path) == []


# ---- what no key tells -----------------------------------------------------------------------------------------------


class Levelled(Counted):
    """`level` is a whole number, as a count of calls is, and in no key."""

    level = 1

    def forward(self, x):
        return self.level * super().forward(x)


def thresholds(tmp_path, net, data, cache, **keywords):
    args = arguments(tmp_path / "run", scan_cache_dir=str(cache), temperature="energy(ratio=0.3)", **keywords)
    trainer = DistillationTrainer(Net(), net, args, train_dataset=data)
    trainer.fit_slots()
    return trainer.distillation_loss.temperature.thresholds


def test_a_teacher_that_says_otherwise_is_scanned_anew(tmp_path, caplog):
    net = Levelled()
    first = thresholds(tmp_path, net, packed(), tmp_path / "cache")
    assert thresholds(tmp_path, net, packed(), tmp_path / "cache") == first
    assert caplog.messages == []
    net.level = 2
    assert thresholds(tmp_path, net, packed(), tmp_path / "cache") == thresholds(tmp_path, net, packed(), "") != first
    (said,) = caplog.messages
    assert re.search(
        r"scan-.* is not used: the (energy|entropy) of row \d+ was stored as \S+, but this teacher c", said
    )
    assert re.search(r"\(tolerance for rounding: \S+\)\. Scanning again\.$", said)


def test_image_files_replaced_under_their_names_are_scanned_anew(tmp_path):
    """Thresholds of other images put every image at one temperature."""
    folder, net = tmp_path / "images", Counted()

    def write(seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
        for number, picture in enumerate(pixels):
            path = folder / ("train" if number < 12 else "test") / f"class{number % 5}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture // (1 + 5 * (seed > 0))).save(path)
        return load_large_images(str(folder))[0].with_transform(LargeImageTransform(size=8))

    first = thresholds(tmp_path, net, write(0), tmp_path / "cache")
    second = thresholds(tmp_path, net, write(1), tmp_path / "cache")
    assert second == thresholds(tmp_path, net, write(1), "") != first


def test_random_rows_are_not_compared(tmp_path, caplog):
    """A user's own augmentation gives another image each time, and its scan is used all the same."""

    def jitter(rows):
        return {"pixel_values": [torch.randn(3, 8, 8) for _ in rows["labels"]], "labels": rows["labels"]}

    data = Dataset.from_dict({"labels": [0] * 23}).with_transform(jitter)
    first = thresholds(tmp_path, Counted(), data, tmp_path / "cache")
    assert thresholds(tmp_path, net := Counted(), data, tmp_path / "cache") == first
    assert net.images == 0  # those that the trainer looks at when it is built are not counted
    assert caplog.messages == []


@pytest.mark.parametrize(("level", "cut"), [("sample", None), ("item", None), ("item", 3)])
def test_tokens_scanned_before_are_compared_too(tmp_path, caplog, level, cut):
    data, model = token_dataset(9), taught_model()
    keywords = {"collate": TokenCollator(0), "task": CausalLM(), "level": level, "num_classes": cut, "batch_size": 4}
    first = scan(model, data, cache_dir=tmp_path, **keywords, **QUIET)
    assert same(scan(model, data, cache_dir=tmp_path, **keywords, **QUIET), first)
    assert len(first.rows.energy) == 9
    model.lm_head.register_forward_hook(lambda module, args, output: 1.2 * output)
    (file,) = tmp_path.iterdir()
    other = scan(model, data, cache_dir=tmp_path, **keywords, **QUIET)  # a hook is in the key
    (new,) = set(tmp_path.iterdir()) - {file}
    as_if_of(file, new)
    assert same(scan(model, data, cache_dir=tmp_path, **keywords, **QUIET), other)
    assert "is not used: the " in caplog.text


def as_if_of(file, other):
    """The numbers of `file` under the key of `other`: what a key that misses something comes to."""
    with safe_open(other, "pt") as found:
        metadata = found.metadata()
    with safe_open(file, "pt") as found:
        tensors = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118
        checksum = found.metadata()["checksum"]
    save_file(tensors, other, metadata | {"checksum": checksum})


def test_bfloat16_on_another_batch_size_is_rounding(tmp_path, caplog):
    net = teacher().bfloat16()
    scan(net, packed(), cache_dir=tmp_path, batch_size=23, **QUIET)
    scan(net, packed(), cache_dir=tmp_path, batch_size=3, **QUIET)
    assert "is not used" not in caplog.text


# ---- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_ranks_scan_as_one_and_never_wait_for_each_other(tmp_path):
    """23 images in batches of 4 on 2 ranks: the last round repeats images as padding, which must not stay."""
    # Folders of their own, as on two nodes: only rank 0's already holds the scan.
    keywords = QUIET | {"batch_size": 4, "accelerator": Accelerator(cpu=True), "cache_dir": tmp_path / "own-0"}
    expected = scan(Counted(), packed(), **keywords)
    assert len(os.listdir(tmp_path / "own-0")) == 1
    job = Path(__file__).parents[1] / "scan_job.py"
    assert on_ranks(tmp_path / "log", 2, script, job, str(tmp_path)) == [0, 0], (tmp_path / "log-0").read_text()[-4000:]
    for rank in range(2):
        record = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        for which, result in record["results"].items():
            assert same(TeacherScan(**result), expected, atol=1e-5), f"{which} scan on rank {rank}"
        assert record["images"]["first"] == record["images"]["own"] == 12  # 24 with the padding
        assert record["images"]["second"] == PROBED, "a cached scan asks the teacher about a few images"
        assert record["hits"] == ((35, 23), (34, 23))[rank]
        torch.testing.assert_close(record["cached"], Counted()(packed()[:]["pixel_values"]), rtol=1e-4, atol=1e-4)
    assert len(os.listdir(tmp_path / "shared")) == 1
