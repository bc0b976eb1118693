"""Stored teachers: exact where they say so, a lower bound elsewhere, found by example and never by place."""

import itertools
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from text_toys import VOCAB, language_model, taught_model, token_dataset, tokenizer
from torch import nn
from toys import Net, Rows, arguments
from transformers import Gemma2Config, Gemma2ForCausalLM

from hfkd import DistillationTrainer
from hfkd.data.text_collate import TokenCollator
from hfkd.evaluation import evaluate_sets
from hfkd.losses.base import Objective, Requirements, Weighting
from hfkd.losses.items import target_items, token_items
from hfkd.losses.logits import JSD, KD, AdaptiveKL, ReverseKL, SkewKL, SkewReverseKL, TotalVariation
from hfkd.losses.outputs import Outputs
from hfkd.losses.temperatures import Energy, Gradation
from hfkd.tasks.causal_lm import CausalLM
from hfkd.teachers import CachedTextTeacher, FrozenTeacher, build_text_cache, scan
from hfkd.teachers.token_cache.manifest import MANIFEST, TAG, Manifest
from hfkd.utils.targets import Targets

DIVERGENCES = [KD(), ReverseKL(), JSD(), SkewKL(), SkewReverseKL(), TotalVariation()]
DSKD = {"objective": "kd(scale='none')", "temperature": "2.0", "ce_weight": 0.5, "kd_weight": 0.5}
QUIET = {"progress_bar": False}
HERE = Path(__file__).parents[2]


def build(folder, data=None, teacher=None, **keywords):
    keywords = {"k": 4, "temperatures": (2.0, 4.0, 6.0), "shard_rows": 5, "dtype": "float32"} | QUIET | keywords
    build_text_cache(teacher or taught_model(), data or token_dataset(), folder, **keywords)
    return CachedTextTeacher(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    build(folder)
    return folder


def test_the_home_folder_is_not_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert isinstance(build("~/cache"), CachedTextTeacher)
    assert (tmp_path / "home" / "cache" / MANIFEST).is_file()
    evaluated = Dataset.from_dict({"prompt": ["ask you"], "references": [["a"]]})
    limits = {"max_new_tokens": 2, "max_prompt_length": 8, "seeds": (1,)}
    evaluate_sets(language_model(), tokenizer(), {"dolly": evaluated}, "~/answers", **limits)
    assert os.listdir(tmp_path) == ["home"]


def batch_of(rows):
    return TokenCollator(0)(list(rows))


def both(cached, rows):
    """The same rows' items with the live teacher and with the stored one, the student's logits shared."""
    batch = batch_of(rows)
    teacher, student = FrozenTeacher(taught_model()), language_model().eval()
    logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    live = token_items(logits, teacher(**batch), batch["labels"])
    targets = Targets(batch["labels"])
    stored = cached.outputs(cached.look_up(list(rows)))
    return live, target_items(Outputs(targets.pick(logits)), stored, targets)


def temperature(items, t):
    return torch.full((len(items),), t)


# ---- the numbers ----------------------------------------------------------------------------------------------------


def test_entropies_and_energies_are_the_live_teachers(folder):
    live, stored = both(CachedTextTeacher(folder), token_dataset())
    for t in (4.0, 1.0):
        torch.testing.assert_close(stored.teacher.energy(t), live.teacher.energy(t), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stored.teacher.entropy(3.0), live.teacher.entropy(3.0), rtol=1e-5, atol=1e-5)
    assert stored.teacher.num_classes == VOCAB
    with pytest.raises(
        ValueError, match=r"entropy at temperature 3.0, not at 2.0: build a new cache with entropy_temp"
    ):
        stored.teacher.entropy(2.0)


@pytest.mark.parametrize("t", [2.0, 4.0, 6.0])
def test_the_buckets_are_the_teachers_and_students_probabilities(folder, t):
    """By the definition: the k largest of the teacher's softmax, and the sum of all others."""
    live, stored = both(CachedTextTeacher(folder), token_dataset())
    for mine, logits in zip(
        stored.log_probabilities(temperature(live, t)), (live.teacher.logits, live.student.logits), strict=True
    ):
        for n in range(0, len(live), 7):
            p, q = (live.teacher.logits[n].double() / t).softmax(-1), (logits[n].double() / t).softmax(-1)
            likeliest = sorted(range(VOCAB), key=lambda c: -p[c])[:4]
            expected = [q[c].item() for c in likeliest]
            expected.append(sum(q[c].item() for c in range(VOCAB) if c not in likeliest))
            assert mine[n].exp().tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("objective", [*DIVERGENCES, AdaptiveKL()])
def test_with_every_token_stored_the_loss_and_its_gradient_are_the_live_ones(tmp_path, objective):
    live, stored = both(build(tmp_path, k=100), token_dataset())
    assert stored.teacher.ids.shape[-1] == VOCAB
    t = temperature(live, 2.0)
    whole, mine = objective(live, t), objective(stored, t)
    torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(v.sum(), i.student.logits)[0] for v, i in ((whole, live), (mine, stored))]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", DIVERGENCES)
def test_a_bucket_lowers_the_divergence_and_more_tokens_bring_it_back(tmp_path, objective):
    values = []
    for k in (1, 4, 9, VOCAB):
        live, stored = both(build(tmp_path / str(k), k=k), token_dataset())
        values.append(objective(stored, temperature(stored, 2.0)))
    for fewer, more in itertools.pairwise(values):
        assert (fewer <= more + 1e-6).all()
    assert (values[0] < values[-1] - 1e-4).any()
    torch.testing.assert_close(values[-1], objective(live, temperature(live, 2.0)), rtol=1e-5, atol=1e-5)


def test_a_students_bucket_of_almost_no_mass_keeps_its_gradient():
    """log(1 - sum) would be log 0 here."""
    logits = torch.tensor([[60.0, 40.0, 0.0, -1.0]], requires_grad=True)
    ids, zero = torch.tensor([[0, 1]]), torch.zeros(1)
    from hfkd.losses.items import Items
    from hfkd.losses.topk import TopKOutputs

    teacher = TopKOutputs(ids, torch.tensor([[0.0, -1.0]]), {1.0: torch.tensor([-2.0])}, {}, {}, 4)
    items = Items(Outputs(logits), teacher, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), 1)
    _, log_q = items.log_probabilities(zero + 1)
    assert log_q[0, 2].item() == pytest.approx(math.log(1 + math.exp(-1)) - 60, rel=1e-6)
    KD()(items, zero + 1).sum().backward()
    p_tail = torch.tensor([0.0, -1.0, -2.0]).softmax(-1)[2].item()
    assert logits.grad[0, 2:].sum().item() == pytest.approx(-p_tail, rel=1e-4)


def test_half_precision_changes_the_loss_by_less_than_a_thousandth(tmp_path):
    losses = []
    for dtype in ("float16", "float32"):
        _, stored = both(build(tmp_path / dtype, dtype=dtype), token_dataset())
        losses.append(KD()(stored, temperature(stored, 2.0)).mean().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] != losses[1]


def test_bytes_per_token_are_what_the_files_take(tmp_path):
    data = token_dataset(400)
    manifest = build(tmp_path, data, k=8, dtype="float16", shard_rows=400).manifest
    tokens = sum(len(Targets(batch_of([row])["labels"])) for row in data)
    assert manifest.bytes_per_token == 8 * (2 + 2) + 4 * (3 + 3)
    assert (tmp_path / "shard-00000.arrow").stat().st_size == pytest.approx(
        tokens * manifest.bytes_per_token + 400 * 60, rel=0.1
    )


# ---- found by example -----------------------------------------------------------------------------------------------


def test_order_and_company_change_nothing(folder):
    cached, data = CachedTextTeacher(folder), token_dataset()
    alone = [cached.look_up([row]) for row in data]
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    together = cached.look_up([data[i] for i in order])
    for name, values in together.items():
        assert torch.equal(values, torch.cat([alone[i][name] for i in order]))
    cached.check_rows(data.shuffle(seed=1).select(range(10)))


def test_batches_of_another_size_store_the_same_numbers(tmp_path):
    first, second = (build(tmp_path / str(n), batch_size=n, shard_rows=n) for n in (1, 16))
    rows = list(token_dataset())
    a, b = first.look_up(rows), second.look_up(rows)
    assert torch.equal(a["teacher_ids"], b["teacher_ids"])
    for name in set(a) - {"teacher_ids"}:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-4)


def test_a_row_whose_tokens_changed_is_refused(folder, tmp_path):
    rows = token_dataset().to_list()
    rows[7]["labels"][-1] = 3 if rows[7]["labels"][-1] != 3 else 4
    changed = Dataset.from_list(rows)
    with pytest.raises(ValueError, match=r"does not contain row 7 \(index 7\) with its current tokens"):
        make(tmp_path, folder, train_dataset=changed)
    cached = CachedTextTeacher(folder)
    assert cached.look_up([rows[6], rows[7]]) == {}
    with pytest.raises(ValueError, match="does not contain this batch's rows"):
        cached.outputs({})


# ---- training from it -----------------------------------------------------------------------------------------------


def make(tmp_path, teacher, train_dataset=None, **keywords):
    keywords = DSKD | {"weighting": "entropy"} | keywords
    return DistillationTrainer(
        language_model(),
        teacher if isinstance(teacher, torch.nn.Module) else CachedTextTeacher(teacher),
        arguments(tmp_path / "run", **keywords),
        processing_class=tokenizer(),
        train_dataset=train_dataset or token_dataset(),
        eval_dataset=token_dataset(13, seed=3),
    )


@pytest.mark.parametrize(
    "temperature",
    ["2.0", "energy(ratio=0.25, temperature=4.0)", "energy(ratio=0.25, temperature=4.0, level='item')"],
)
def test_training_with_every_token_stored_is_training_with_the_teacher(tmp_path, temperature):
    cached = make(tmp_path / "a", build(tmp_path / "cache", k=VOCAB), temperature=temperature)
    live = make(tmp_path / "b", taught_model(), temperature=temperature)
    for trainer in (cached, live):
        trainer.train()
    for mine, theirs in zip(cached.model.parameters(), live.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert cached.evaluate()["eval_loss"] == pytest.approx(live.evaluate()["eval_loss"], abs=1e-4)
    if "energy" in temperature:
        slots = [trainer.distillation_loss.temperature.thresholds for trainer in (cached, live)]
        assert slots[0] == pytest.approx(slots[1], abs=1e-4)
        assert len({r["temperature"] for r in cached.state.log_history if "temperature" in r}) > 1


def test_thresholds_are_fitted_beside_entropies_of_another_temperature(tmp_path):
    cached = build(tmp_path / "cache", k=VOCAB, entropy_temperature=1.0)
    slots = {"temperature": "energy(ratio=0.25)", "weighting": "entropy(temperature=1.0)"}
    stored, live = make(tmp_path / "a", cached, **slots), make(tmp_path / "b", taught_model(), **slots)
    for trainer in (stored, live):
        trainer.train()
    for mine, theirs in zip(stored.model.parameters(), live.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_temperatures_that_a_sum_misses_by_a_bit_are_the_stored_ones(tmp_path):
    cached = build(tmp_path / "cache", temperatures=(2.0, 4.1, 6.3))
    assert 4.1 - 2.1 != 2.0
    trainer = make(tmp_path, cached, temperature="energy(ratio=0.25, temperature=4.1, decrease=2.1, increase=2.2)")
    trainer.train()
    assert all(r["kd"] > 0 for r in trainer.state.log_history if "kd" in r)


def test_the_teacher_is_not_in_memory_and_workers_read_the_cache(folder, tmp_path):
    trainer = make(tmp_path, folder, dataloader_num_workers=1)
    trainer.train()
    assert sum(p.numel() for p in trainer.teacher.parameters()) == 0
    assert "k=4" in json.loads((tmp_path / "run" / "distillation.json").read_text())["teacher"]
    steps = [r for r in trainer.state.log_history if "grad_norm" in r]
    assert len(steps) == 3
    assert all(r["kd"] > 0 for r in steps)


def test_a_padded_teacher_vocabulary_is_cut_when_stored(tmp_path):
    padded = build(tmp_path / "cache", teacher=taught_model(vocab=VOCAB + 6), num_classes=VOCAB)
    make(tmp_path, padded).train()
    with pytest.raises(
        ValueError, match=f"student has {VOCAB} logits, but the teacher cache {VOCAB + 6}: build it with"
    ):
        make(tmp_path, build(tmp_path / "whole", teacher=taught_model(vocab=VOCAB + 6)))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"objective": "dkd"}, "reads all 14 logits of the teacher, but the cache holds the 4 largest"),
        ({"objective": "standardized"}, "reads all 14 logits"),
        ({"temperature": "3.0"}, r"uses 3.0, but the teacher cache was built for temperatures=\(2.0, 4.0, 6.0\)"),
        ({"temperature": "energy(temperature=5.0)"}, r"uses 3.0, 5.0, 7.0"),
        ({"temperature": "energy(energy_temperature=2.0)"}, "energy at temperature 1.0 and 4.0, not at 2.0"),
        ({"temperature": "gradation"}, "build one with all temperatures needed"),
        ({"loss_chunk_size": 4}, "loss_chunk_size needs the live teacher"),
        ({"evaluate_kl": True}, "evaluate_kl needs the live teacher"),
    ],
)
def test_what_a_cache_cannot_serve_is_refused_when_the_trainer_is_built(folder, tmp_path, keywords, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, folder, **keywords)


@pytest.mark.parametrize(
    ("need", "message"),
    [
        ({"teacher": ("2",)}, "a stored teacher has only logits"),
        ({"relations": True}, "compares items with each other, which a teacher cache does not support"),
    ],
)
def test_objectives_that_need_more_are_refused(folder, tmp_path, need, message):
    class Needs(KD):
        def requirements(self):
            return Requirements(**need)

    args = arguments(tmp_path / "run", **DSKD)
    keywords = {"train_dataset": token_dataset(), "processing_class": tokenizer(), "objective": Needs()}
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(language_model(), CachedTextTeacher(folder), args, **keywords)
    assert not (tmp_path / "run").exists()


def test_a_store_made_by_the_defaults_teaches_by_the_defaults(tmp_path):
    build_text_cache(taught_model(), token_dataset(), tmp_path / "stored", k=4, **QUIET)
    keywords = {"train_dataset": token_dataset(), "processing_class": tokenizer()}
    stored = CachedTextTeacher(tmp_path / "stored")
    trainer = DistillationTrainer(language_model(), stored, arguments(tmp_path / "run"), **keywords)
    assert trainer.distillation_loss.temperature.choices == stored.manifest.temperatures == (1.0,)


def test_images_are_not_for_it(folder, tmp_path):
    with pytest.raises(ValueError, match="is for causal language models, but the task is image_classification"):
        DistillationTrainer(Net(), CachedTextTeacher(folder), arguments(tmp_path), train_dataset=Rows())


def test_temperatures_say_all_that_they_give():
    energies = torch.linspace(-5, 5, 100)
    for slot in (Energy(increase=1.0, decrease=3.0), Energy(direction="released", increase=1.0), Gradation()):
        slot.fit(energies)
        logits = energies.unsqueeze(-1).neg()  # energy -z with one class
        items = token_items(logits[None], logits[None], torch.zeros(1, 100, dtype=torch.long))
        slot.level = "item"
        assert set(slot(items).tolist()) == set(slot.choices)


# ---- built once -----------------------------------------------------------------------------------------------------


def test_another_teacher_other_data_or_settings_are_refused(folder):
    other = taught_model()
    with torch.no_grad():
        other.transformer.ln_f.bias.add_(1e-3)
    for change in ({"teacher": other}, {"data": token_dataset(31)}, {"k": 5}, {"temperatures": 2.0}):
        with pytest.raises(ValueError, match=r"contains another teacher cache: its (teacher|data|k|temperatures) is"):
            build(folder, **change)


def test_damage_is_named_and_only_that_file_is_made_again(tmp_path, caplog):
    whole = build(tmp_path).look_up(list(token_dataset()))
    shards = sorted(tmp_path.glob("shard-*.arrow"))
    assert len(shards) == 7
    times = {path: path.stat().st_mtime_ns for path in shards}
    shards[2].write_bytes(shards[2].read_bytes()[:-100])
    shards[4].unlink()
    with pytest.raises(ValueError, match="2 of 7 files are missing or damaged .*shard-00002"):
        CachedTextTeacher(tmp_path)
    with caplog.at_level(logging.INFO, "hfkd"):
        again = build(tmp_path).look_up(list(token_dataset()))
    assert "this process creates 2 of 7 files" in caplog.text
    assert {path for path in shards if path.stat().st_mtime_ns != times[path]} == {shards[2], shards[4]}
    assert all(torch.equal(again[name], values) for name, values in whole.items())


def test_a_build_of_many_files_begins_at_once(tmp_path, monkeypatch):
    """The file of each row was looked for among all: an hour for two million rows, before the first was stored."""

    class Begun(Exception):
        pass

    def begin(*given):
        raise Begun

    monkeypatch.setattr("hfkd.teachers.token_cache.build.text_columns", begin)
    rows = token_dataset(8)
    many = concatenate_datasets([rows] * 750).remove_columns("index").add_column("index", range(6000))
    start = time.process_time()
    with pytest.raises(Begun):
        build(tmp_path, many, shard_rows=1)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("level", ["sample", "item"])
def test_energies_are_read_of_many_rows_at_a_time(folder, monkeypatch, level):
    """One by one a million rows took a quarter of an hour, and each token a tensor of its own."""
    cached, rows = CachedTextTeacher(folder), token_dataset()
    each = [cached.known(rows.select([number]), level=level) for number in range(len(rows))]
    looked_up, look_up = [], CachedTextTeacher.look_up
    monkeypatch.setattr(CachedTextTeacher, "look_up", lambda self, some: looked_up.append(1) or look_up(self, some))
    found = cached.known(rows, level=level)
    assert len(looked_up) == 1
    for name in ("energy", "entropy", "prediction"):
        torch.testing.assert_close(getattr(found, name), torch.cat([getattr(one, name) for one in each]))
        whole = [getattr(one.rows, name) for one in each]
        torch.testing.assert_close(getattr(found.rows, name), torch.cat(whole))
    assert len(found.energy) == (len(rows) if level == "sample" else sum(map(_targets, rows)))


@pytest.mark.parametrize("stored", [False, True])
def test_of_very_many_tokens_a_scan_keeps_evenly_spread_ones(folder, monkeypatch, stored):
    teacher, rows = CachedTextTeacher(folder) if stored else taught_model(), token_dataset()
    settings = {"collate": TokenCollator(0), "task": CausalLM(), "level": "item", "batch_size": 4} | QUIET
    whole = scan(teacher, rows, **settings)
    monkeypatch.setattr("hfkd.teachers.sampled_items.MOST", 20)
    some = scan(teacher, rows, **settings)
    assert 10 < len(some.energy) <= 20 < len(whole.energy)
    step = 2 ** math.ceil(math.log2(len(whole.energy) / 20))
    for name in ("energy", "entropy", "prediction"):
        assert torch.equal(getattr(some, name), getattr(whole, name)[::step])
        assert torch.equal(getattr(some.rows, name), getattr(whole.rows, name))


def _targets(row):
    return sum(label != -100 for label in row["labels"][1:])


def test_the_target_tokens_are_counted(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hfkd"):
        build(tmp_path)
    assert f"{sum(map(_targets, token_dataset()))} target tokens of" in caplog.text


@pytest.mark.slow
def test_a_killed_build_goes_on_where_it_was(tmp_path):
    script = (
        "import sys; from text_toys import *; from hfkd.teachers import build_text_cache; "
        "build_text_cache(taught_model(width=256), token_dataset(1500), sys.argv[1], k=4, shard_rows=25, "
        "progress_bar=False)"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    killed = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=environment)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("shard-*.arrow")):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*.arrow")}
    assert 0 < len(before) < 60
    with pytest.raises(ValueError, match="files are missing or damaged"):
        CachedTextTeacher(tmp_path)
    build_text_cache(taught_model(width=256), token_dataset(1500), tmp_path, k=4, shard_rows=25, **QUIET)
    assert len(CachedTextTeacher(tmp_path).look_up(list(token_dataset(1500)))) == 6
    assert all(path.stat().st_mtime_ns == earlier for path, earlier in before.items())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"k": 0}, "k=0 must be a whole number above 0"),
        ({"temperatures": ()}, "must be one or more different numbers"),
        ({"temperatures": (2.0, 0.0)}, "temperature=0.0 must be a number from 0.001 to 10000"),
        ({"dtype": "bfloat16"}, "must be 'float16' or 'float32'"),
        ({"num_classes": VOCAB + 1}, f"must be within the teacher's {VOCAB} logits"),
        ({"data": token_dataset().remove_columns("index")}, "use tokenize_dataset"),
        (
            {"data": token_dataset().remove_columns("index").add_column("index", [1] * 32)},
            "must be unique for each row",
        ),
    ],
)
def test_bad_arguments_write_nothing(tmp_path, keywords, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "cache", **keywords)
    assert not (tmp_path / "cache").exists()


def test_a_broken_teacher_is_named_with_its_rows(tmp_path):
    broken = taught_model()
    with torch.no_grad():
        broken.transformer.wpe.weight[8] = float("nan")  # the longer rows alone
    with pytest.raises(ValueError, match="logits are NaN or infinite among the rows with index"):
        build(tmp_path, teacher=broken)


def test_a_folder_without_a_cache_or_with_a_foreign_one(tmp_path):
    with pytest.raises(ValueError, match="has no teacher_cache.json"):
        CachedTextTeacher(tmp_path)
    (tmp_path / "teacher_cache.json").write_text('{"format": 3}')
    with pytest.raises(ValueError, match="is not a teacher cache of this version"):
        CachedTextTeacher(tmp_path)


@pytest.mark.parametrize("call", [CachedTextTeacher, build])
def test_a_cache_of_a_later_version_is_not_read_with_todays_meaning(tmp_path, call):
    """What the same columns mean may have changed; nothing but the revision says so."""
    build(tmp_path)
    later = replace(Manifest.read(tmp_path), revision=3)
    for shard in later.shards:  # whole, and of that cache
        path = tmp_path / shard
        path.write_bytes(content := path.read_bytes()[:-TAG])
        path.write_bytes(content + later._tag(path, shard, len(content)))
    later.write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="has revision 3 of the format .* reads revision 2: train with the version"):
        call(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- damage ---------------------------------------------------------------------------------------------------------


def flip(path, position, bit):
    content = bytearray(path.read_bytes())
    content[position] ^= bit
    path.unlink()  # a file that is mapped into memory keeps its content
    path.write_bytes(content)


def test_no_flipped_bit_anywhere_gives_other_numbers(tmp_path):
    """Every damage is an error that names file and remedy; what is built again is as before."""
    rows, draw = list(token_dataset()), torch.Generator().manual_seed(0)
    whole = build(tmp_path, shard_rows=16).look_up(rows)
    shards = sorted(tmp_path.glob("shard-*.arrow"))
    contents = {path: path.read_bytes() for path in shards}
    assert len(shards) == 2
    for path in shards:
        size = len(contents[path])
        for position in [*range(size - 40, size), *torch.randint(size, (150,), generator=draw).tolist()]:
            flip(path, position, 1 << int(torch.randint(8, (), generator=draw)))
            with pytest.raises(
                ValueError, match=rf"1 of 2 files are missing or damaged in .*\(first {path.name}\): call b"
            ):
                CachedTextTeacher(tmp_path)
            path.write_bytes(contents[path])
    flip(shards[1], 700, 4)
    again = build(tmp_path, shard_rows=16).look_up(rows)
    assert all(torch.equal(again[name], values) for name, values in whole.items())


def test_no_flipped_bit_of_the_manifest_is_believed(tmp_path):
    rows = list(token_dataset())
    whole = build(tmp_path).look_up(rows)
    manifest = tmp_path / "teacher_cache.json"
    content, read = manifest.read_bytes(), 0
    for position in range(len(content)):
        flip(manifest, position, 1 << position % 8)
        try:
            cached = CachedTextTeacher(tmp_path)
        except ValueError as error:
            assert str(manifest) in str(error)  # noqa: PT017
            assert "delete only this file, and call build_text_cache again" in str(error)  # noqa: PT017
        else:  # a tab between two words is no damage
            read += 1
            assert all(torch.equal(cached.look_up(rows)[name], values) for name, values in whole.items())
        manifest.write_bytes(content)
    assert read < len(content) / 20
    flip(manifest, len(content) // 2, 1)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*.arrow")}
    manifest.unlink()
    again = build(tmp_path).look_up(rows)
    assert all(torch.equal(again[name], values) for name, values in whole.items())
    assert all(path.stat().st_mtime_ns == earlier for path, earlier in times.items())


def test_files_of_another_cache_are_none_of_this_one(tmp_path):
    """Without a manifest nothing but their checksums says whose they are."""
    build(tmp_path)
    (tmp_path / "teacher_cache.json").unlink()
    other = language_model(24, seed=3)
    mine, alone = build(tmp_path, teacher=other), build(tmp_path / "alone", teacher=other)
    rows = list(token_dataset())
    assert all(torch.equal(mine.look_up(rows)[name], values) for name, values in alone.look_up(rows).items())


# ---- the same teacher ----------------------------------------------------------------------------------------------


class Levelled(torch.nn.Module):
    """`level` is in no fingerprint."""

    def __init__(self):
        super().__init__()
        self.model, self.level = taught_model(), 1

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        logits = self.model(input_ids, attention_mask=attention_mask, position_ids=position_ids).logits
        return logits.roll(1, -1) if self.level == 0 else self.level * logits


@pytest.mark.parametrize(
    ("level", "said"), [(2, "the (entropy|energy|logsumexp|.*) of row"), (0, "largest stored logits are among")]
)
def test_a_teacher_that_says_otherwise_does_not_go_on_with_a_cache(tmp_path, level, said):
    teacher = Levelled()
    build(tmp_path, teacher=teacher)
    cached = build(tmp_path, teacher=teacher)
    cached.check(teacher, token_dataset())
    (tmp_path / "shard-00002.arrow").unlink()
    teacher.level = level
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        ValueError, match=f"has the outputs of another teacher, or of another state of this one: .*{said}"
    ):
        build(tmp_path, teacher=teacher)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match=f"is not from this teacher: .*{said}.*; build another"):
        cached.check(teacher, token_dataset())


def test_another_precision_or_batch_size_is_the_same_teacher(tmp_path):
    cached = build(tmp_path, teacher=taught_model().bfloat16(), batch_size=16)
    cached.check(taught_model().bfloat16(), token_dataset(), batch_size=1)
    build(tmp_path / "float32", batch_size=16, dtype="float16").check(taught_model(), token_dataset(), batch_size=3)


def test_a_changed_setting_is_named_with_both_values(tmp_path):
    def gemma(cap):
        torch.manual_seed(0)
        sizes = {"vocab_size": VOCAB, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
        return Gemma2ForCausalLM(Gemma2Config(**sizes | heads, final_logit_softcapping=cap))

    cached = build(tmp_path, teacher=gemma(30.0))
    said = r"in its config final_logit_softcapping is 30.0, here it is 2.0"
    with pytest.raises(ValueError, match=f"contains another teacher cache: {said}; choose another folder"):
        build(tmp_path, teacher=gemma(2.0))
    with pytest.raises(ValueError, match=f"is not from this teacher: {said}"):
        cached.check(gemma(2.0), token_dataset())
    with pytest.raises(ValueError, match="does not contain the row with index 3"):
        cached.check(gemma(30.0), token_dataset(seed=5))


# ---- masks ----------------------------------------------------------------------------------------------------------


def masking(mask, count):
    """A teacher that gives its last classes no probability."""
    model = taught_model()

    def hook(head, states, logits):
        return torch.cat([logits[..., :-count], torch.full_like(logits[..., -count:], mask)], -1)

    model.lm_head.register_forward_hook(hook)
    return model


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("k", [4, VOCAB])
@pytest.mark.parametrize(
    ("mask", "count"), [(-1e4, 2), (-1e9, 2), (-1e9, VOCAB - 2), (-math.inf, 2), (-math.inf, VOCAB - 2)]
)
def test_masked_classes_have_no_probability(tmp_path, dtype, k, mask, count):
    """k of more classes than the teacher leaves, and a bucket of masked ones only."""
    teacher = masking(mask, count)
    rows = list(token_dataset())
    cached = build(tmp_path, teacher=teacher, k=k, dtype=dtype, temperatures=(2.0, 500.0))
    stored = cached.outputs(cached.look_up(rows))
    batch = batch_of(rows)
    logits = Targets(batch["labels"]).pick(FrozenTeacher(teacher)(**batch))
    torch.testing.assert_close(stored.entropy(3.0), Outputs(logits).entropy(3.0))
    for t in (2.0, 500.0):
        p = stored.log_probabilities(Outputs(logits), torch.full((len(logits),), t))[0].exp()
        assert torch.isfinite(stored.log_probabilities(Outputs(logits), torch.full((len(logits),), t))[0]).all()
        live = (logits / t).softmax(-1)
        expected = live.gather(-1, stored.ids)
        torch.testing.assert_close(p[:, :k], expected, rtol=2e-3, atol=1e-4)
        if k < VOCAB:
            torch.testing.assert_close(p[:, k], 1 - expected.sum(-1), rtol=2e-3, atol=1e-4)
    live_kd = make(tmp_path / "a", teacher if mask > -math.inf else cached, ce_weight=0.0, learning_rate=0.0)
    kept_kd = make(tmp_path / "b", cached, ce_weight=0.0, learning_rate=0.0)
    for trainer in (live_kd, kept_kd):
        trainer.train()
    if k == VOCAB or count == VOCAB - 2:
        kds = [[r["kd"] for r in trainer.state.log_history if "kd" in r] for trainer in (live_kd, kept_kd)]
        assert kds[1] == pytest.approx(kds[0], rel=1e-3)


def test_a_temperature_at_which_half_precision_is_too_narrow_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"temperatures go up to 1000, but float16 stores logits down to -65504 .* 600"
    ):
        build(tmp_path, dtype="float16", temperatures=1000.0)
    assert list(tmp_path.iterdir()) == []
    build(tmp_path / "wide", temperatures=1000.0)
    whole = build(tmp_path / "whole", dtype="float16", k=VOCAB)
    with pytest.raises(ValueError, match=r"goes up to 1000, but above 600 masked cl"):
        make(tmp_path / "run", whole, temperature="1000.0")


# ---- ranks ----------------------------------------------------------------------------------------------------------


def test_two_ranks_store_and_train_the_same(tmp_path):
    sys.path.insert(0, str(HERE))
    from test_ranks import run

    one = make(tmp_path / "one", build(tmp_path / "one" / "cache", temperatures=2.0))
    one.train()
    job = DSKD | {"weighting": "entropy", "per_device_train_batch_size": 4}
    two, record = run(tmp_path / "two", 2, "cache_job.py", job)
    rows = list(token_dataset())
    stored = [CachedTextTeacher(tmp_path / name / "cache").look_up(rows) for name in ("one", "two")]
    for name, values in stored[0].items():
        torch.testing.assert_close(stored[1][name], values, rtol=1e-5, atol=1e-5)
    for name, parameter in one.model.state_dict().items():
        torch.testing.assert_close(two[name], parameter, rtol=0, atol=1e-6)
    losses = [[r["loss"] for r in log if "grad_norm" in r] for log in (one.state.log_history, record["log"])]
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)


class Counting(nn.Module, Weighting):
    """The number of calls, in a buffer, and which rows were seen."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(32))

    def requirements(self):
        return Requirements(index=True)

    def forward(self, items):
        self.calls += 1
        self.seen[items.index] += 1
        return torch.ones(len(items))


class Running(nn.Module, Objective):
    """KL over its running mean."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, items, temperature):
        self.calls += 1
        return KD()(items, temperature)


class Late(nn.Module, Objective):
    def forward(self, items, temperature):
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(()))
        return self.scale * KD()(items, temperature)


def taught_by(folder, tmp_path, **slots):
    args = arguments(tmp_path / "run", max_steps=4, temperature="2.0")
    given = {"train_dataset": token_dataset(), "processing_class": tokenizer(), "data_collator": TokenCollator(0)}
    return DistillationTrainer(language_model(), CachedTextTeacher(folder), args, **given, **slots)


def test_slots_with_state_are_tried_on_a_copy_and_know_their_rows(folder, tmp_path):
    trainer = taught_by(folder, tmp_path, weighting=Counting(), objective=Running())
    loss = trainer.distillation_loss
    assert loss.weighting.calls == loss.objective.calls == 0
    trainer.train()
    assert loss.weighting.calls == loss.objective.calls == 4
    assert torch.equal(loss.weighting.seen, torch.ones(32))  # an epoch
    with pytest.raises(ValueError, match="the objective makes scale when it is called"):
        taught_by(folder, tmp_path, objective=Late())
