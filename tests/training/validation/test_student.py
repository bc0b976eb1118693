"""What a student's own weights and configuration would do to its training or its saving is said when it is passed."""

import logging

import peft
import pytest
import torch
from datasets import Dataset
from text_toys import VOCAB, language_model, token_dataset, tokenizer
from torch import nn
from toys import CHECKPOINTING, CLASSES, Net, Rows, arguments, teacher
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    RwkvConfig,
    RwkvForCausalLM,
    TrainerCallback,
)
from transformers.integrations import peft as integrations
from versions import since

from hfkd import DistillationTrainer
from hfkd.evaluation.metrics import item_accuracy
from hfkd.models import Peers


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


@since("transformers", "5.23", "refuse to save it")
def test_a_generation_config_is_taken_as_it_was_published(tmp_path):
    language_model().save_pretrained(tmp_path / "hub")
    (tmp_path / "hub" / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.3}')
    make(tmp_path / "run", AutoModelForCausalLM.from_pretrained(tmp_path / "hub")).save_model()
    assert '"temperature": 0.3' in (tmp_path / "run" / "generation_config.json").read_text()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_that_transformers_does_not_save_are_refused_at_once(tmp_path, monkeypatch):
    """transformers 5.24 wants a newer PEFT than there is."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    language_model().save_pretrained(tmp_path / "base")
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).save_pretrained(
        tmp_path / "own"
    )
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "own")
    for name, parameter in student.named_parameters():
        parameter.requires_grad_("lora" in name)
    monkeypatch.setattr(integrations, "MIN_PEFT_VERSION", "99.0")
    with pytest.raises(ValueError, match=r"cannot be saved by transformers \(.* >= 99.0\): .*is_trainable=True"):
        make(tmp_path / "run", student)


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
    plan["evaluate_kl"] = metric == "kl"
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


class TwoHeads(Net):
    """Two outputs in training and their mean in evaluation, like a distilled DeiT of timm."""

    def __init__(self):
        super().__init__()
        self.other = torch.nn.Linear(4, CLASSES)

    def forward(self, x):
        features = torch.relu(self.conv(x)).mean((2, 3))
        both = self.head(features), self.other(features)
        return both if self.training else sum(both) / 2


def image_trainer(folder, student, *more, **keywords):
    return DistillationTrainer(student, teacher(), arguments(folder, **keywords), *more, train_dataset=Rows())


@pytest.mark.parametrize("skipping", ["stop", "skip"])
def test_parameters_without_a_gradient_are_spoken_of_once(tmp_path, caplog, skipping):
    image_trainer(tmp_path, TwoHeads(), on_nan=skipping).train()
    assert caplog.text.count("other.weight, other.bias got no gradient at the first step") == 1
    caplog.clear()
    image_trainer(tmp_path / "one", Net()).train()
    assert "got no gradient" not in caplog.text


def with_optimizer(folder, student, parameters, **keywords):
    optimizers = (torch.optim.SGD(parameters, lr=0.1), None)
    return DistillationTrainer(
        student, teacher(), arguments(folder), train_dataset=Rows(), optimizers=optimizers, **keywords
    )


def test_an_optimizer_of_another_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"optimizers=\(SGD, ...\) has none of the student's trainable parameters"):
        with_optimizer(tmp_path, Net(), Net().parameters())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_optimizer_of_the_weights_below_adapters_is_refused(tmp_path):
    peft, student = pytest.importorskip("peft"), language_model()
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    own, args = torch.optim.SGD(student.parameters(), lr=0.1), arguments(tmp_path, ce_weight=1, kd_weight=0)
    parts = {"train_dataset": token_dataset(), "optimizers": (own, None)}
    with pytest.raises(ValueError, match=r"with peft_config these are adapters, which do not exist before"):
        DistillationTrainer(student, None, args, peft_config=config, **parts)
    adapted = peft.get_peft_model(language_model(), config)
    parts["optimizers"] = (torch.optim.SGD(adapted.parameters(), lr=0.1), None)
    DistillationTrainer(adapted, None, args, **parts)


def test_an_optimizer_of_a_part_names_the_others(tmp_path, caplog):
    student = Net()
    with_optimizer(tmp_path, student, student.head.parameters())
    assert "has 2 of the student's 4 trainable parameters; conv.weight, conv.bias stay as they are" in caplog.text


def test_the_best_checkpoint_by_a_divergence_needs_one(tmp_path):
    """Trainer ended the run at its first evaluation. A metric of the caller's may have the name."""

    def build(**given):
        args = arguments(tmp_path, eval_strategy="epoch", metric_for_best_model="eval_kl", evaluate_kl=False)
        return DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(), eval_dataset=Rows(8), **given)

    for ours in ({}, {"compute_metrics": item_accuracy}):
        with pytest.raises(ValueError, match="'eval_kl' is measured only with evaluate_kl=True: set that too"):
            build(**ours)
    build(compute_metrics=lambda prediction: {"kl": 0.0})


@pytest.mark.parametrize("metric", [None, "eval_accuracy"])
def test_the_best_checkpoint_of_several_sets_needs_the_name_of_one(tmp_path, metric):
    plan = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    plan |= {"load_best_model_at_end": True, "max_steps": 1}
    sets = {"clean": Rows(8), "noisy": Rows(8, seed=1)}

    def build(name):
        args = arguments(tmp_path, metric_for_best_model=name, **plan)
        return DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(), eval_dataset=sets)

    with pytest.raises(
        ValueError, match=r"of which evaluation set, of \['clean', 'noisy'\]: name one, as in .*'clean_"
    ):
        build(metric)
    trainer = build("noisy_loss")
    trainer.train()
    assert trainer.state.best_global_step == 1


class OwnMode(nn.Module):
    """A classifier with a frozen body; `kept`: whose batch norm stays in eval mode."""

    def __init__(self, kept):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.Linear(4, 5)
        self.body.requires_grad_(False)
        self.kept = kept

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

    def train(self, mode=True):
        super().train(mode)
        if self.kept:
            self.body.eval()
        return self


@pytest.mark.parametrize("kept", [False, True])
def test_frozen_batch_norms_whose_statistics_change_are_spoken_of(tmp_path, caplog, kept):
    student = OwnMode(kept).eval()
    before = student.body[1].running_mean.clone()
    trainer = DistillationTrainer(student, teacher(), arguments(tmp_path), train_dataset=Rows())
    assert not any(module.training for module in student.modules())
    assert ("1 batch norms of the student have frozen weights (body.1)" in caplog.text) is not kept
    trainer.train()
    assert torch.equal(student.body[1].running_mean, before) is kept


@pytest.mark.parametrize("student", [Net(), Peers([Net(), Net()])])
def test_gradient_checkpointing_of_a_network_without_it_is_refused(tmp_path, student):
    taught = None if isinstance(student, Peers) else teacher()
    args = arguments(tmp_path, **{CHECKPOINTING: True})
    with pytest.raises(ValueError, match=f"{CHECKPOINTING}=True asks .* a (Net|Peers) does not support it: leave"):
        DistillationTrainer(student, taught, args, train_dataset=Rows())


def test_kernels_that_are_not_installed_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hfkd.training.validation.student.is_liger_kernel_available", lambda: False)
    with pytest.raises(ValueError, match="use_liger_kernel=True needs the package liger-kernel"):
        make(tmp_path, language_model(), use_liger_kernel=True)


def test_noise_is_added_once_after_an_interrupted_training(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, *given, **keywords):
            raise InterruptedError

    student = language_model()
    trainer = make(tmp_path, student, neftune_noise_alpha=5)
    trainer.add_callback(Stop)
    for _ in range(2):
        with pytest.raises(InterruptedError):
            trainer.train()
        assert not student.get_input_embeddings()._forward_hooks
    trainer.remove_callback(Stop)
    trainer.train()
    assert not student.get_input_embeddings()._forward_hooks


def test_weights_that_evaluation_divides_are_refused(tmp_path):
    """RWKV's, saved after an evaluation, are divided again once they are loaded."""
    sizes = {"hidden_size": 8, "attention_hidden_size": 8, "intermediate_size": 8, "vocab_size": VOCAB}
    student = RwkvForCausalLM(RwkvConfig(**sizes, num_hidden_layers=3, rescale_every=2))
    with pytest.raises(ValueError, match="rescale_every=2 in the student's config divides the weights"):
        make(tmp_path, student)
    student.config.rescale_every = 0
    make(tmp_path, student)
