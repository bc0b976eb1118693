"""What scripts that were written for Trainer do, with DistillationTrainer in its place."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import on_ranks, script
from task_toys import padded, wav2vec2, waves
from text_toys import TokenRows, language_model, taught_model, tokenizer
from toys import Net, Rows, arguments, teacher
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    Wav2Vec2FeatureExtractor,
)
from transformers.trainer_utils import get_last_checkpoint

from hfkd import DistillationTrainer
from hfkd.training.checkpoints.manifest import write_manifest
from hfkd.training.run_identity import FILE

PLAIN = {"use_cpu": True, "report_to": "none", "max_steps": 1, "save_strategy": "no", "disable_tqdm": True}


def plain_arguments(folder, **more):
    return TrainingArguments(str(folder), **(PLAIN | more))


# ---- arguments --------------------------------------------------------------------------------------------------


def test_arguments_of_trainer_are_taken_with_our_defaults_which_is_said(tmp_path, caplog):
    plain = plain_arguments(tmp_path, learning_rate=0.25, remove_unused_columns=True)
    trainer = DistillationTrainer(Net(), teacher(), plain, train_dataset=Rows())
    trainer.train()
    args = trainer.args
    assert (args.learning_rate, args.max_steps, args.temperature, args.kd_weight) == (0.25, 1, None, 0.9)
    assert caplog.text.count("TrainingArguments are converted to DistillationArguments") == 1
    assert "ce_weight=0.1, kd_weight=0.9" in caplog.text


def test_what_a_subclass_of_its_arguments_has_is_found_there(tmp_path):
    plain = Seq2SeqTrainingArguments(str(tmp_path), generation_max_length=7, **PLAIN)
    assert DistillationTrainer(Net(), teacher(), plain, train_dataset=Rows()).args.generation_max_length == 7


@dataclass
class OfAnotherTrainer(TrainingArguments):
    """As TRL's SFTConfig and GKDConfig."""

    max_length: int = 1024
    packing: bool = False
    kinds: list[str] = field(default_factory=list)
    seq_kd: bool = False


class OfAThesis(TrainingArguments):
    """As books and forums have it."""

    def __init__(self, *given, alpha=0.5, temperature=2.0, **keywords):
        super().__init__(*given, **keywords)
        self.alpha, self.temperature = alpha, temperature


def test_what_has_no_effect_of_a_subclass_of_its_arguments_is_said(tmp_path, caplog):
    def built(**more):
        caplog.clear()
        return DistillationTrainer(Net(), teacher(), OfAnotherTrainer(str(tmp_path), **PLAIN, **more))

    assert built(packing=True, seq_kd=True).args.packing
    assert "OfAnotherTrainer sets packing, seq_kd, which DistillationTrainer does not read" in caplog.text
    built()
    assert "does not read" not in caplog.text


def test_a_temperature_of_another_trainers_arguments_is_not_passed_over(tmp_path, caplog):
    args = OfAThesis(str(tmp_path), **PLAIN)
    with pytest.raises(ValueError, match="has temperature=2.0, which is not read .* pass temperature= to Distill"):
        DistillationTrainer(Net(), teacher(), args)
    trainer = DistillationTrainer(Net(), teacher(), args, temperature=2.0)
    assert repr(trainer.distillation_loss.temperature) == "Constant(temperature=2.0)"
    assert "OfAThesis sets alpha, which DistillationTrainer does not read" in caplog.text


def test_trainers_order_of_arguments(tmp_path):
    """(model, args, data_collator, train_dataset, eval_dataset); the teacher by keyword."""
    trainer = DistillationTrainer(Net(), arguments(tmp_path), None, Rows(), Rows(13, seed=3), teacher=teacher())
    assert len(trainer.eval_dataset) == 13
    assert trainer.teacher is not None
    with pytest.raises(ValueError, match="kd_weight=0.9 needs a teacher"):
        DistillationTrainer(Net(), arguments(tmp_path), train_dataset=Rows())
    with pytest.raises(TypeError, match="got .'train_dataset'. twice"):
        DistillationTrainer(Net(), arguments(tmp_path), None, Rows(), train_dataset=Rows())


# ---- inputs -----------------------------------------------------------------------------------------------------


def test_a_teacher_of_sounds_that_are_prepared_otherwise_is_said(tmp_path, caplog):
    """WavLM's large models take normalised waves, its base models raw ones: every network gets the student's."""
    ours, said = Wav2Vec2FeatureExtractor(do_normalize=False), "was trained on sounds with do_normalize=True"

    def built(stored):
        wav2vec2(8).save_pretrained(tmp_path / "teacher")
        stored.save_pretrained(tmp_path / "teacher")
        taught = type(wav2vec2(8)).from_pretrained(tmp_path / "teacher")
        rows = {"train_dataset": waves(), "data_collator": padded}
        DistillationTrainer(wav2vec2(8), taught, arguments(tmp_path / "run"), processing_class=ours, **rows)

    built(ours)
    assert said not in caplog.text
    built(Wav2Vec2FeatureExtractor(do_normalize=True))
    assert (
        f"{said}, and gets them as the student's feature extractor makes them, with do_normalize=False" in caplog.text
    )


# ---- model_init -------------------------------------------------------------------------------------------------


class Plain(Trainer):
    """Trainer itself, on the labels."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(model(inputs["pixel_values"]), inputs["labels"])


def test_model_init_makes_a_student_for_each_training_as_trainers_does(tmp_path):
    made = []

    def student():
        with torch.random.fork_rng(devices=()):  # Net seeds the process, which plain Trainer's order of rows follows
            made.append(Net(seed=int(torch.randint(9, ()))))
        return made[-1]

    keywords = {"train_dataset": Rows(), "model_init": student}
    plain = Plain(args=arguments(tmp_path), **keywords)
    plain.train()
    trainer = DistillationTrainer(args=arguments(tmp_path), kd_weight=0, ce_weight=1, **keywords)
    for _ in range(2):
        trainer.train()
        assert trainer.model is made[-1]
        for one, other in zip(plain.model.parameters(), trainer.model.parameters(), strict=True):
            torch.testing.assert_close(one, other)


def test_a_checkpoint_of_plain_trainer_in_the_scripts_folder(tmp_path, caplog):
    """A script that resumes from what is there, once its Trainer is exchanged."""
    saving = {"save_strategy": "steps", "save_steps": 1}
    Plain(Net(), arguments(tmp_path, **saving, max_steps=2), train_dataset=Rows()).train()
    last = get_last_checkpoint(str(tmp_path))

    def resumed(steps, **weights):
        args = arguments(tmp_path, max_steps=steps)
        return DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(), **weights).train(last)

    with pytest.raises(ValueError, match="checkpoint-2 has no record .*, and this run ends at its step 2, so that no"):
        resumed(2)
    resumed(3)
    assert "its 2 steps count as trained, and the teacher has a part in the other 1 alone" in caplog.text
    caplog.clear()
    (tmp_path / "distillation.json").unlink()
    resumed(2, ce_weight=1.0, kd_weight=0.0)
    assert "has no record" not in caplog.text


def test_a_checkpoint_of_shards_is_not_taken_for_plain_trainers(tmp_path, caplog):
    """Of a student that FSDP saves in shards a checkpoint has no file of its own, and no record with that."""

    def trainer(steps):
        args = arguments(tmp_path, max_steps=steps, save_strategy="steps", save_steps=2)
        return DistillationTrainer(Net(), teacher(), args, train_dataset=Rows())

    trainer(2).train()
    checkpoint = tmp_path / "checkpoint-2"
    (checkpoint / FILE).unlink()
    write_manifest(checkpoint)
    trainer(2).train(resume_from_checkpoint=True)
    trainer(3).train(resume_from_checkpoint=True)
    assert "has no record" not in caplog.text


def test_a_temperature_that_learns_starts_anew_with_each_student(tmp_path, caplog):
    keywords = {"train_dataset": Rows(), "model_init": lambda: Net(), "temperature": "learned"}
    trainer = DistillationTrainer(None, teacher(), arguments(tmp_path, learning_rate=1.0), **keywords)
    found = []
    for _ in range(2):
        trainer.train()
        found.append((trainer.distillation_loss, [p.clone() for p in trainer.distillation_loss.parameters()]))
    assert found[0][0] is not found[1][0]
    assert "the optimizer that was passed" not in caplog.text
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(one, other)
    fresh = DistillationTrainer(None, teacher(), arguments(tmp_path), **keywords).distillation_loss
    assert any(not torch.equal(a, b) for a, b in zip(fresh.parameters(), found[1][1], strict=True)), "it was trained"


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs optuna")
def test_a_search_of_hyperparameters_tries_temperatures(tmp_path):
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=3)
    keywords = {"train_dataset": Rows(), "eval_dataset": Rows(13, seed=3), "model_init": lambda trial: Net()}
    trainer = DistillationTrainer(None, teacher(), args, **keywords)
    seen = []

    def space(trial):
        return {"temperature": trial.suggest_categorical("temperature", ["1.0", "6.0"])}

    def objective(metrics):
        seen.append((trainer.distillation_loss.temperature, metrics["eval_loss"]))
        return metrics["eval_loss"]

    import optuna

    sampler = optuna.samplers.GridSampler({"temperature": ["1.0", "6.0"]}, seed=0)
    best = trainer.hyperparameter_search(
        space, objective, n_trials=2, direction="minimize", backend="optuna", sampler=sampler
    )
    by_temperature = {str(slot): loss for slot, loss in seen}
    assert len(set(by_temperature.values())) == 2, "each trial has its own loss"
    assert best.objective == min(by_temperature.values())
    fixed = DistillationTrainer(None, teacher(), arguments(tmp_path / "other"), temperature=2.0, **keywords)
    with pytest.raises(ValueError, match="the search varies temperature, but the trainer was given temperature="):
        fixed.hyperparameter_search(space, objective, n_trials=1, direction="minimize", backend="optuna")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "there is no student: pass model="),
        ({"model": Net(), "model_init": lambda: Net()}, "are both given"),
        ({"model_init": lambda: None}, "model_init returned a NoneType"),
        ({"model_init": lambda a, b: Net()}, "takes 2 arguments"),
    ],
)
def test_no_student_or_two_are_refused(tmp_path, keywords, message):
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(args=arguments(tmp_path), teacher=teacher(), train_dataset=Rows(), **keywords)


def test_an_optimizer_for_another_student_is_refused(tmp_path):
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizers= has the parameters of one student"):
        DistillationTrainer(
            args=arguments(tmp_path),
            teacher=teacher(),
            train_dataset=Rows(),
            model_init=Net,
            optimizers=(optimizer, None),
        )


# ---- metrics ----------------------------------------------------------------------------------------------------


def test_a_classifier_is_scored_by_its_accuracy_where_no_metric_is_given(tmp_path):
    trainer = DistillationTrainer(Net(), teacher(), arguments(tmp_path), eval_dataset=Rows(13, seed=3))
    scores, found = trainer.evaluate(), trainer.predict(Rows(13, seed=3))
    assert found.predictions.shape == (13, 5), "predictions are logits still"
    expected = (found.predictions.argmax(-1) == np.arange(13) % 5).mean()
    assert scores["eval_accuracy"] == found.metrics["test_accuracy"] == pytest.approx(expected)
    assert scores["eval_top5_accuracy"] == 1
    mixed = [row | {"labels": torch.full((5,), 0.2)} for row in map(Rows().__getitem__, range(13))]
    assert "eval_accuracy" not in trainer.evaluate(mixed)


@pytest.mark.parametrize("keywords", [{"compute_metrics": lambda found: {"mine": 1.0}}, {}])
def test_a_metric_of_ones_own_stands_alone(tmp_path, keywords):
    args = arguments(tmp_path, prediction_loss_only=not keywords)
    trainer = DistillationTrainer(Net(), teacher(), args, eval_dataset=Rows(13, seed=3), **keywords)
    assert "eval_accuracy" not in trainer.evaluate()


def test_only_better_checkpoints_are_kept(tmp_path):
    scores = iter([0.60, 0.65, 0.64])
    args = arguments(tmp_path, save_strategy="best", metric_for_best_model="mine", eval_strategy="steps", eval_steps=1)
    trainer = DistillationTrainer(
        Net(),
        teacher(),
        args,
        train_dataset=Rows(),
        eval_dataset=Rows(13),
        compute_metrics=lambda found: {"mine": next(scores)},
    )
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


# ---- what subclasses and scripts override --------------------------------------------------------------------------


class OwnLoader(DistillationTrainer):
    """Any iterable of batches will do for Trainer."""

    def get_train_dataloader(self):
        return list(super().get_train_dataloader())


def test_a_train_dataloader_of_ones_own(tmp_path):
    mine, plain = (
        kind(Net(), teacher(), arguments(tmp_path / kind.__name__), train_dataset=Rows())
        for kind in (OwnLoader, DistillationTrainer)
    )
    mine.train()
    plain.train()
    for one, other in zip(mine.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "keywords",
    [
        {"tasks": "image-classification", "dataset_tags": "beans", "dataset_args": "default"},
        {"language": "en", "license": "mit", "tags": ["vision"], "model_name": "x", "finetuned_from": "a/b"},
    ],
)
def test_a_card_with_trainers_keywords(tmp_path, keywords):
    trainer = DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=Rows())
    trainer.create_model_card(**keywords)
    trainer.create_model_card("en", "mit", ["vision"])
    assert "mit" in (tmp_path / "README.md").read_text()


def test_no_clipping_may_be_said_by_none(tmp_path):
    trainer = DistillationTrainer(Net(), teacher(), arguments(tmp_path, max_grad_norm=None), train_dataset=Rows())
    assert trainer.train().global_step == 3


# ---- methods of a subclass --------------------------------------------------------------------------------------


class OwnLoss(DistillationTrainer):
    """As answers in forums have it: nothing of the trainer's own."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(model(inputs["pixel_values"]), inputs["labels"])


class MoreLoss(DistillationTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **others):
        return super().compute_loss(model, inputs, return_outputs, **others) + 0.0


def test_a_loss_in_which_the_teacher_has_no_part_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"compute_loss of OwnLoss does not call super\(\).compute_loss"):
        OwnLoss(Net(), teacher(), arguments(tmp_path), train_dataset=Rows()).train()
    settings = arguments(tmp_path / "alone", kd_weight=0.0, ce_weight=1.0, max_steps=1, per_device_train_batch_size=32)
    mine = OwnLoss(Net(), None, settings, train_dataset=Rows())
    assert mine.train().training_loss == pytest.approx(mine_on_all(Net()), abs=1e-6)
    assert MoreLoss(Net(), teacher(), arguments(tmp_path / "more"), train_dataset=Rows()).train().global_step == 3


def mine_on_all(student):
    return torch.nn.functional.cross_entropy(student(Rows().images), Rows().labels).item()


class OldLoss(DistillationTrainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        return super().compute_loss(model, inputs, return_outputs)


class OldLog(DistillationTrainer):
    def log(self, logs):
        super().log(logs)


def test_a_method_of_earlier_versions_is_named_when_the_trainer_is_built(tmp_path):
    wanted = r"define it as compute_loss\(self, model, inputs, return_outputs=False, num_items_in_batch=None\)"
    with pytest.raises(ValueError, match=wanted):
        OldLoss(Net(), teacher(), arguments(tmp_path), train_dataset=Rows())


def test_a_log_of_earlier_versions_works_where_no_training_step_is_logged(tmp_path):
    trainer = OldLog(Net(), teacher(), arguments(tmp_path, logging_strategy="no"), train_dataset=Rows())
    trainer.train()
    assert "train_loss" in trainer.state.log_history[-1]


def test_a_collator_that_is_set_afterwards_is_made_ready_as_one_that_was_passed(tmp_path):
    """Columns of words stay behind, and rows padded at their start get positions."""
    rows = [row | {"text": "words", "attention_mask": [1] * len(row["input_ids"])} for row in TokenRows(16).rows]
    words = tokenizer()
    words.pad_token, words.padding_side = words.eos_token, "left"
    collate, batches = DataCollatorForSeq2Seq(words), []
    for late in (False, True):
        given = {} if late else {"data_collator": collate}
        args = arguments(tmp_path / str(late), train_sampling_strategy="sequential")
        made = DistillationTrainer(language_model(), taught_model(), args, train_dataset=rows, **given)
        made.data_collator = collate if late else made.data_collator
        batches.append(next(iter(made.get_train_dataloader())))
        made.train()
    assert batches[0].keys() == batches[1].keys() >= {"position_ids", "host_targets"}
    torch.testing.assert_close(batches[0]["position_ids"], batches[1]["position_ids"])


# ---- several ranks ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stream", "idle"])
def test_two_ranks_train_what_one_does(tmp_path, name):
    """A stream of tokens, which each rank reads; a student with an idle parameter beside a temperature that learns."""
    found = []
    for ranks, size in ((1, 8), (2, 4)):
        out = tmp_path / str(ranks)
        out.mkdir()
        codes = on_ranks(
            out / "log", ranks, script, Path(__file__).with_name("habit_job.py"), str(out), name, str(size)
        )
        logs = "\n".join(path.read_text()[-2000:] for path in out.glob("log*"))
        assert codes == [0] * ranks, logs
        found.append(torch.load(out / "student.pt", weights_only=True))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=0, atol=1e-6, msg=key)
