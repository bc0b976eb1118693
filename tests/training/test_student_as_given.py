"""What a student's own weights and configuration would do to its training or its saving is said when it is passed."""

import logging

import pytest
import torch
from datasets import Dataset
from text_toys import language_model, token_dataset, tokenizer
from toys import Net, Rows, arguments, teacher
from transformers import DataCollatorForLanguageModeling

from hfkd import DistillationTrainer


def make(folder, student, rows=None, **keywords):
    given = {name: keywords.pop(name) for name in ("data_collator", "processing_class") if name in keywords}
    args = arguments(folder, ce_weight=1, kd_weight=0, **keywords)
    return DistillationTrainer(student, None, args, train_dataset=rows or token_dataset(), **given)


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 256), (torch.float16, 2048)])
def test_weights_in_half_precision_are_spoken_of(tmp_path, caplog, dtype, share):
    make(tmp_path, language_model().to(dtype))
    assert f"less than about one part in {share} is lost: load it in float32" in caplog.text


def test_a_half_precision_teacher_or_a_frozen_part_are_not(tmp_path, caplog):
    student = language_model()
    student.transformer.wpe.to(torch.bfloat16).requires_grad_(False)
    make(tmp_path, student)
    half = DistillationTrainer(Net(), teacher().to(torch.bfloat16), arguments(tmp_path / "half"), train_dataset=Rows())
    assert half.teacher is not None
    assert "in which a step" not in caplog.text


def test_a_generation_config_that_cannot_be_saved_is_refused_at_once(tmp_path):
    student = language_model()
    student.generation_config.temperature = 0.3
    with pytest.raises(ValueError, match="generation_config cannot be saved with it .*temperature.*do_sample = True"):
        make(tmp_path, student)
    student.generation_config.do_sample = True
    make(tmp_path, student).save_model()
    assert (tmp_path / "generation_config.json").exists()


ENDING = [{"input_ids": [3, 4, 5, 6] * (1 + i % 2) + [1]} for i in range(8)]
OPEN = [{"input_ids": [3, 4, 5, 6] * (1 + i % 2)} for i in range(8)]


@pytest.mark.parametrize(("rows", "pad", "said"), [(ENDING, 1, True), (ENDING, 2, False), (OPEN, 1, False)])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_collator_that_hides_the_end_of_sequence_is_spoken_of(tmp_path, caplog, rows, pad, said, side):
    words = tokenizer()
    words.pad_token, words.padding_side = words.convert_ids_to_tokens(pad), side
    collate = DataCollatorForLanguageModeling(words, mlm=False)
    make(tmp_path, language_model(), Dataset.from_list(rows), data_collator=collate, processing_class=words)
    assert ("end in token 1, which has no label" in caplog.text) == said


def test_without_a_collator_the_end_of_sequence_is_learned(tmp_path, caplog):
    words = tokenizer()
    words.pad_token = words.eos_token
    trainer = make(tmp_path, language_model(), Dataset.from_list(ENDING), processing_class=words)
    for batch in trainer.get_train_dataloader():
        assert (batch["labels"] == 1).sum() == len(batch["labels"])
    assert "which has no label" not in caplog.text


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
@pytest.mark.parametrize(
    ("metric", "given", "mode"),
    [("accuracy", None, "max"), ("loss", None, "min"), ("kl", None, "min"), ("accuracy", {"mode": "min"}, "min")],
)
def test_a_schedule_that_follows_a_metric_knows_its_direction(tmp_path, name, metric, given, mode):
    plan = {"lr_scheduler_type": name, "metric_for_best_model": metric, "lr_scheduler_kwargs": given}
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=1, **plan)
    trainer = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(), eval_dataset=Rows(8, seed=1))
    trainer.create_optimizer_and_scheduler(4)
    assert trainer.lr_scheduler.mode == mode


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"lr_scheduler_type": "constant"}, True),
        ({"lr_scheduler_type": "constant_with_warmup"}, False),
        ({"lr_scheduler_type": "constant", "lr_decay_epochs": [1]}, False),
    ],
)
def test_a_warm_up_that_the_schedule_has_not_is_spoken_of(tmp_path, caplog, keywords, said):
    with caplog.at_level(logging.WARNING):
        arguments(tmp_path, warmup_steps=10, **keywords)
    assert ("warmup_steps=10 has no effect" in caplog.text) == said
