"""A resumed run is the run that was started: what no fingerprint tells shows in a few rows' energies."""

import json

import pytest
import torch
from datasets import Dataset
from scan_job import Counted, packed
from text_toys import language_model, taught_model, token_dataset, tokenizer
from toys import Net, Rows, arguments, teacher
from transformers import Gemma2Config, Gemma2ForCausalLM

from hfkd import DistillationTrainer
from hfkd.teachers import CachedTextTeacher, build_text_cache

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}


class Levelled(Counted):
    """`level` is in no fingerprint."""

    level = 1

    def forward(self, x):
        return self.level * super().forward(x)


def run(folder, net, data, resume=None, **keywords):
    args = arguments(folder, **SAVING | {"temperature": "energy(ratio=0.3)"} | keywords)
    trainer = DistillationTrainer(Net(), net, args, train_dataset=data)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("temperature", ["energy(ratio=0.3)", "4.0"])
def test_other_images_of_the_same_length_are_refused(tmp_path, temperature):
    run(tmp_path / "run", Counted(), packed(), temperature=temperature)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    said = "contains another run: it was trained on as many rows, but with other contents or labels"
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "run", Counted(), packed(seed=1), True, temperature=temperature, max_steps=4)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert run(tmp_path / "run", Counted(), packed(), True, temperature=temperature, max_steps=4).state.global_step == 4


@pytest.mark.parametrize("temperature", ["energy(ratio=0.3)", "4.0"])
def test_a_teacher_that_says_otherwise_is_refused(tmp_path, temperature):
    net = Levelled()
    run(tmp_path / "run", net, packed(), temperature=temperature)
    net.level = 2
    with pytest.raises(ValueError, match=r"the energy of row \d+ was stored as \S+, but this teacher computes"):
        run(tmp_path / "run", net, packed(), True, temperature=temperature, max_steps=4)


def test_the_teacher_reads_no_more_rows_at_a_time_than_in_a_step(tmp_path):
    """It would run out of memory on large images, of which a step has one or two."""
    net, sizes = Counted(), []
    net.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    run(tmp_path / "run", net, packed(), temperature="4.0", per_device_train_batch_size=2)
    assert sizes
    assert max(sizes) == 2
    probe = json.loads((tmp_path / "run" / "distillation.json").read_text())["probe"]
    assert len(probe["energies"]) == 8


def test_thresholds_of_a_run_that_is_not_resumed_are_not_kept(tmp_path):
    """Its error says to choose another output_dir, and the trainer is there still."""
    net = Levelled()
    run(tmp_path / "run", net, packed())
    net.level = 2
    settings = SAVING | {"temperature": "energy(ratio=0.3)", "max_steps": 4}
    trainer = DistillationTrainer(Net(), net, arguments(tmp_path / "run", **settings), train_dataset=packed())
    with pytest.raises(ValueError, match="choose another output_dir"):
        trainer.train(resume_from_checkpoint=True)
    trainer.args.output_dir = str(tmp_path / "new")
    trainer.train()
    built = run(tmp_path / "built", net, packed(), max_steps=4)
    now, new = (one.distillation_loss.temperature.thresholds for one in (trainer, built))
    assert now == new


def test_the_probe_is_the_first_runs_and_comes_back_with_each_checkpoint(tmp_path):
    run(tmp_path / "run", Counted(), packed())
    first = json.loads((tmp_path / "run" / "checkpoint-2" / "distillation.json").read_text())["probe"]
    assert len(first["rows"]) == len(first["energies"]) == 8
    batches = {"max_steps": 4, "per_device_train_batch_size": 4}
    run(tmp_path / "run", Counted(), packed(), True, **batches)
    assert json.loads((tmp_path / "run" / "checkpoint-4" / "distillation.json").read_text())["probe"] == first


def test_a_run_without_checkpoints_asks_the_teacher_nothing(tmp_path):
    counts = []
    for steps in (0, 1):
        net = Counted()
        args = arguments(tmp_path / str(steps), max_steps=1, temperature="4.0")
        trainer = DistillationTrainer(Net(), net, args, train_dataset=packed())
        before = net.images
        trainer.train()
        counts.append(net.images - before)
    assert counts == [8, 8]


def test_rows_at_random_and_rows_that_go_by_are_not_compared(tmp_path):
    class Noisy(Rows):
        def __getitem__(self, i):
            return super().__getitem__(i) | {"pixel_values": torch.randn(3, 8, 8)}

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([Rows()[i] for i in range(32)])

    for name, data in (("noisy", Noisy()), ("stream", Stream())):
        run(tmp_path / name, teacher(), data, temperature="4.0")
        assert json.loads((tmp_path / name / "distillation.json").read_text())["probe"] is None
        run(tmp_path / name, teacher(), data, True, temperature="4.0", max_steps=4)


def test_probing_leaves_the_random_state_alone(tmp_path):
    losses = []
    for strategy in ("steps", "no"):
        torch.manual_seed(0)
        trainer = run(tmp_path / strategy, teacher(), Rows(), temperature="4.0", save_strategy=strategy, max_steps=3)
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


def gemma(cap, width=8):
    torch.manual_seed(0)
    sizes = {"vocab_size": 14, "hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    return Gemma2ForCausalLM(Gemma2Config(**sizes | heads, final_logit_softcapping=cap))


def tokens(folder, taught, resume=None, **keywords):
    args = arguments(folder, **SAVING | keywords)
    data = {"train_dataset": token_dataset(), "processing_class": tokenizer()}
    trainer = DistillationTrainer(language_model(), taught, args, **data)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_changed_setting_is_refused_by_name_when_the_trainer_is_built(tmp_path):
    tokens(tmp_path / "run", gemma(30.0))
    with pytest.raises(ValueError, match="in its teacher's config final_logit_softcapping is 30.0, here it is 2.0"):
        tokens(tmp_path / "run", gemma(2.0), True, max_steps=4)
    tokens(tmp_path / "run", gemma(30.0), True, max_steps=4)


@pytest.mark.parametrize("level", ["sample", "item"])
def test_tokens_and_a_stored_teacher(tmp_path, level):
    keywords = {"temperature": f"energy(ratio=0.3, level='{level}')"}
    build_text_cache(taught_model(), token_dataset(), tmp_path / "c", temperatures=(2.0, 4.0, 6.0), progress_bar=False)
    for name, taught in (("live", taught_model), ("stored", lambda: CachedTextTeacher(tmp_path / "c"))):
        tokens(tmp_path / name, taught(), **keywords)
        assert tokens(tmp_path / name, taught(), True, max_steps=4, **keywords).state.global_step == 4
        for record in (tmp_path / name).rglob("distillation.json"):
            values = json.loads(record.read_text())
            values["probe"]["energies"][3] += 1
            record.write_text(json.dumps(values))
        for manifest in (tmp_path / name).rglob("files.json"):  # whose checksums are not what this is about
            files = manifest.parent
            manifest.write_text(
                json.dumps({path.name: path.stat().st_size for path in files.iterdir() if path != manifest})
            )
        with pytest.raises(ValueError, match=r"the energy of row \d+ was stored as"):
            tokens(tmp_path / name, taught(), True, max_steps=6, **keywords)


def test_a_record_of_an_earlier_version_has_none(tmp_path):
    run(tmp_path / "run", Counted(), packed())
    for record in (tmp_path / "run").rglob("distillation.json"):
        values = json.loads(record.read_text())
        del values["probe"], values["teacher_config"]
        record.write_text(json.dumps(values))
        manifest = record.parent / "files.json"
        if manifest.exists():
            manifest.write_text(
                json.dumps(json.loads(manifest.read_text()) | {"distillation.json": record.stat().st_size})
            )
    assert run(tmp_path / "run", Counted(), packed(), True, max_steps=4).state.global_step == 4


def test_a_dataset_of_the_hub_with_its_own_transform(tmp_path):
    """Nothing of ours: rows of `datasets`, a function for a transform."""

    def prepare(rows):
        return {"pixel_values": [torch.full((3, 8, 8), float(x)) for x in rows["x"]], "labels": rows["labels"]}

    def data(shift):
        return Dataset.from_dict({"x": [i + shift for i in range(32)], "labels": [i % 5 for i in range(32)]})

    run(tmp_path / "run", teacher(), data(0).with_transform(prepare))
    run(tmp_path / "run", teacher(), data(0).with_transform(prepare), True, max_steps=4)
    with pytest.raises(ValueError, match="it was trained on as many rows, but with other contents or labels"):
        run(tmp_path / "run", teacher(), data(7).with_transform(prepare), True, max_steps=6)


@pytest.mark.parametrize(("thresholds", "side"), [((-900, -800), "above"), ((80, 90), "below"), ((-12, -9), None)])
def test_thresholds_of_another_teacher_are_said(tmp_path, caplog, thresholds, side):
    args = arguments(tmp_path, save_strategy="steps", save_steps=3)
    slot = f"energy(thresholds={thresholds})"
    DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(), temperature=slot).train()
    said = [record.getMessage() for record in caplog.records if "the given thresholds" in record.getMessage()]
    assert len(said) == (side is not None)
    assert side is None or f"all {side} the given thresholds" in said[0]
