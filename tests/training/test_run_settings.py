"""What card and results.json say of the training is what was in effect."""

import json
import re

import pytest
import torch
from text_toys import TokenRows, language_model, tokenizer
from toys import Net, Rows, arguments, teacher
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, ViTConfig, ViTForImageClassification

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.reports import ResultsCallback


def trained(folder, model=None, optimizers=(None, None), **keywords):
    run = DistillationTrainer(
        model or Net(), teacher(), arguments(folder, **keywords), train_dataset=Rows(), optimizers=optimizers
    )
    run.add_callback(ResultsCallback(run.settings))
    run.train()
    run.create_model_card()
    return run


def said(folder):
    """The settings in results.json, and on the card as text."""
    config = json.loads((folder / "results.json").read_text())["config"]
    rows = re.findall(r"^\| (\w+) \| (.*) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    return config, dict(rows)


def test_the_protocol_of_the_cifar_papers(tmp_path):
    given = {"learning_rate": 0.05, "weight_decay": 5e-4, "optim_args": "momentum=0.9", "lr_decay_factor": 0.5}
    given |= {"lr_decay_epochs": [0.5, 1.5], "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine"}
    run = trained(tmp_path, **given, decay_bias_and_norm=True)
    config, card = said(tmp_path)
    assert "lr_scheduler_type" not in config
    assert config["lr_decay_epochs"] == [0.5, 1.5]
    assert card["lr_decay_epochs"] == "[0.5, 1.5]"
    assert float(card["lr_decay_factor"]) == config["lr_decay_factor"] == run.lr_scheduler.gamma == 0.5
    assert card["optim_args"] == config["optim_args"] == "momentum=0.9"
    assert run.optimizer.param_groups[0]["momentum"] == 0.9
    assert (config["batch_size"], config["gradient_accumulation_steps"], config["world_size"]) == (16, 2, 1)
    assert (card["gradient_accumulation_steps"], card["world_size"]) == ("2", "1")


@pytest.mark.parametrize(("split", "rows"), [(True, 16), (False, 32)])
def test_a_batch_that_processes_share_is_one_batch(tmp_path, monkeypatch, split, rows):
    args = arguments(tmp_path, accelerator_config={"split_batches": split}, gradient_accumulation_steps=2)
    run = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows())
    monkeypatch.setattr(DistillationArguments, "world_size", 2)
    assert run.settings["batch_size"] == rows
    results = ResultsCallback(run.settings)
    for report in (results.on_train_begin, results.on_save):
        report(args, run.state, run.control)
    assert json.loads((tmp_path / "results.json").read_text())["config"]["batch_size"] == rows


def test_a_resumed_run_has_the_batch_size_that_it_goes_on_with(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    trained(tmp_path, **saving, max_steps=1)
    run = DistillationTrainer(
        Net(),
        teacher(),
        arguments(tmp_path, **saving, per_device_train_batch_size=4, max_steps=2),
        train_dataset=Rows(),
    )
    run.add_callback(ResultsCallback(run.settings))
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    run.create_model_card()
    config, card = said(tmp_path)
    assert config["batch_size"] == config["per_device_train_batch_size"] == int(card["batch_size"]) == 4
    assert run.state.train_batch_size == 4


@pytest.mark.parametrize("bf16", [True, False])
def test_a_schedule_of_transformers_and_the_precision_that_was_computed_in(tmp_path, bf16):
    given = {"lr_scheduler_type": "cosine", "warmup_steps": 2, "optim": "adamw_torch", "adam_beta2": 0.95, "bf16": bf16}
    run = trained(tmp_path, **given)
    config, card = said(tmp_path)
    assert (card["lr_scheduler_type"], card["warmup_steps"], card["adam_beta2"]) == ("cosine", "2", "0.95")
    assert (config["lr_scheduler_type"], config["warmup_steps"], config["adam_beta2"]) == ("cosine", 2, 0.95)
    assert run.optimizer.param_groups[0]["betas"][1] == 0.95
    assert card["mixed_precision"] == config["mixed_precision"] == run.accelerator.mixed_precision
    assert run.accelerator.mixed_precision == ("bf16" if bf16 else "no")
    assert card["weights"] == config["weights"] == "float32"


def test_a_student_in_bfloat16_is_no_float32_run(tmp_path):
    model = language_model().to(torch.bfloat16)
    keywords = {"ce_weight": 1, "kd_weight": 0, "train_dataset": TokenRows(), "processing_class": tokenizer()}
    run = DistillationTrainer(model, None, arguments(tmp_path), **keywords)
    assert run.settings["weights"] == "bfloat16"


def test_the_callers_own_optimizer_is_named_and_not_the_flags(tmp_path):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.8, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    given = {"optim": "adamw_torch", "learning_rate": 1.0, "weight_decay": 0.7}
    trained(tmp_path, model, (optimizer, schedule), **given)
    for settings in said(tmp_path):
        assert settings["optim"] == "SGD, the caller's"
        assert settings["optim_args"] == "momentum=0.8"
        assert settings["lr_scheduler_type"] == "ExponentialLR, the caller's"
        assert "lr_decay_epochs" not in settings
        assert float(settings["learning_rate"]) == 0.02
        assert float(settings["weight_decay"]) == 0.3


class OutOfMemoryOnce(TrainerCallback):
    def __init__(self):
        self.met = False

    def on_step_begin(self, args, state, control, **keywords):
        if state.train_batch_size == 8:
            self.met = True
            raise RuntimeError("CUDA out of memory.")


def test_the_batch_size_that_was_found(tmp_path):
    run = DistillationTrainer(Net(), teacher(), arguments(tmp_path, auto_find_batch_size=True), train_dataset=Rows())
    small = OutOfMemoryOnce()
    run.add_callback(small)
    run.add_callback(ResultsCallback(run.settings))
    run.train()
    run.create_model_card()
    config, card = said(tmp_path)
    assert small.met
    assert config["batch_size"] == config["per_device_train_batch_size"] == run.state.train_batch_size < 8
    assert card["batch_size"] == str(run.state.train_batch_size)


# ---- the student's configuration ------------------------------------------------------------------------------------


def llama(**keywords):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=language_model().config.vocab_size, **sizes, **keywords))


class Uses(TrainerCallback):
    """Notes the student's `use_cache` in training and in evaluation."""

    def __init__(self):
        self.found = set()

    def on_step_end(self, args, state, control, **keywords):
        self.found.add(keywords["model"].config.use_cache)

    on_prediction_step = on_step_end


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_language_model_uses_its_cache_as_before_and_so_does_the_saved_one(tmp_path, use_cache):
    """After one training and after another one, by a second trainer."""
    student, uses = llama(use_cache=use_cache), Uses()
    keywords = {"ce_weight": 1, "kd_weight": 0, "train_dataset": TokenRows(), "processing_class": tokenizer()}
    for stage in (tmp_path / "one", tmp_path / "two"):
        args = arguments(stage, save_strategy="steps", save_steps=2)
        run = DistillationTrainer(student, None, args, callbacks=[uses], **keywords)
        run.evaluate(TokenRows())
        run.train()
        run.save_model()
        for folder in (stage, stage / "checkpoint-2"):
            assert json.loads((folder / "config.json").read_text())["use_cache"] is use_cache
            assert LlamaForCausalLM.from_pretrained(folder).config.use_cache is use_cache
        assert student.config.use_cache is use_cache
    assert uses.found == {False}  # as Trainer wants it


def test_an_image_model_that_has_no_cache_gets_none(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=5))
    run = DistillationTrainer(vit, teacher(), arguments(tmp_path), train_dataset=Rows())
    run.save_model()
    assert "use_cache" not in json.loads((tmp_path / "config.json").read_text())
