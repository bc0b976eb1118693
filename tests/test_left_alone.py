"""What a trainer is given is the caller's: building one leaves no trace in it, nor does training in the arguments."""

import copy
import gc
import random
import weakref
from dataclasses import fields

import numpy as np
import pytest
import task_toys
import torch
from torch import nn
from toys import CLASSES, Net, Rows, arguments, teacher
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from hfkd import DistillationArguments, DistillationTrainer


class Counting(Net):
    """Counts its forwards in a buffer, in eval mode too, and draws random numbers in each."""

    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.register_buffer("forwards", torch.zeros(()))
        self.frozen = nn.BatchNorm2d(3).eval()
        self.seen = []

    def forward(self, x):
        self.forwards += 1
        self.seen.append((self.training, torch.is_grad_enabled(), x.detach().clone()))
        return super().forward(self.frozen(x) + 0 * torch.rand(()))


class Drawing(Rows):
    """Rows that are augmented at random, by all three generators."""

    def __getitem__(self, i):
        row = super().__getitem__(i)
        return row | {"pixel_values": row["pixel_values"] + torch.rand(()) + random.random() + np.random.rand()}


def generators():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def test_building_one_leaves_the_networks_and_the_random_state_alone(tmp_path):
    student, taught = Counting().train(), Counting(seed=1).train()
    student.frozen.eval()
    networks = (student, taught)
    modes = [[module.training for module in network.modules()] for network in networks]
    DistillationTrainer(student, taught, arguments(tmp_path), train_dataset=Drawing(), eval_dataset=Drawing(8))
    state = generators()
    set_seed(arguments(tmp_path).seed)  # which every Trainer does when it is built
    assert state == generators()
    assert [[module.training for module in network.modules()] for network in networks] == modes
    assert all(network.forwards == 0 and network.frozen.num_batches_tracked == 0 for network in networks)
    assert all(p.requires_grad and p.grad is None for network in networks for p in network.parameters())
    for network in networks:
        assert network.seen
        for training, gradient, images in network.seen:
            assert (training, gradient, len(images)) == (False, False, 2)
            assert (images - Rows().images[:2]).std() < 1  # real rows, each plus a number


def settings_of(args):
    return copy.deepcopy({field.name: getattr(args, field.name) for field in fields(args)})


@pytest.mark.parametrize("temperature", ["4.0", "learned"])
def test_arguments_are_afterwards_what_they_were(tmp_path, temperature):
    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no", "report_to": "none"}
    args = DistillationArguments(str(tmp_path), bf16=False, use_cpu=True, disable_tqdm=True, **settings)
    args.dataloader_pin_memory = True  # as where no GPU is there, and none is ruled out
    assert args.ddp_find_unused_parameters is None
    before = settings_of(args)
    rows = {"train_dataset": Rows(), "eval_dataset": Rows(8)}
    made = DistillationTrainer(Net(), teacher(), args, temperature=temperature, **rows)
    assert settings_of(args) == before
    made.train()
    made.evaluate()
    made.predict(Rows(8))
    assert settings_of(args) == before


def test_a_change_of_the_arguments_after_building_counts(tmp_path):
    """As in Trainer, whose arguments are the caller's too."""
    args = arguments(tmp_path)
    made = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(classes=CLASSES))
    args.max_steps = 1
    made.train()
    assert made.state.global_step == 1


def decoders():
    return [LlamaForCausalLM(LlamaConfig(**task_toys.decoder(width))) for width in (8, 16)]


def hooks_on(network):
    return [hook for m in network.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


def optimizer_and_schedule(student):
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)


@pytest.mark.parametrize(
    ("objective", "settings", "keywords", "said"),
    [
        ("minilm(heads=2)", {"eval_strategy": "steps", "eval_steps": 1}, {}, "eval_strategy"),  # by Trainer
        ("hidden_mse(layers=1)", {}, {"optimizers": optimizer_and_schedule}, "has trainable parameters, which"),
    ],
)
def test_one_that_cannot_be_built_leaves_no_hooks_and_does_not_keep_the_networks(
    tmp_path, objective, settings, keywords, said
):
    student, taught = networks = decoders()
    keywords = {name: make(student) for name, make in keywords.items()}
    keywords |= dict.fromkeys(("processing_class", "teacher_processing_class"), task_toys.tokenizer())
    args, rows = arguments(tmp_path, **settings), task_toys.texts(task_toys.answers)()
    with pytest.raises(ValueError, match=said):
        DistillationTrainer(student, taught, args, train_dataset=rows, objective=objective, **keywords)
    for network in networks:
        assert hooks_on(network) == []
        assert network.config._attn_implementation == "sdpa"
    kept = [weakref.ref(network) for network in networks]
    del student, taught, networks, network, keywords
    gc.collect()
    assert [one() for one in kept] == [None, None]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": "learned(warmup_epochs=0)", "evaluate_kl": True},
        {"temperature": "energy", "objective": "kd + fitnet(layer='conv', teacher_layer='conv')"},
    ],
)
def test_a_trainer_that_is_deleted_is_freed_at_once(tmp_path, settings):
    """As Trainer is: in a notebook its optimizer would stay on the device until Python looks for cycles."""
    checkpoints = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    args = arguments(tmp_path, **checkpoints, load_best_model_at_end=True, **settings)
    made = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(), eval_dataset=Rows(8))
    gc.collect()
    gc.disable()
    try:
        made.train()
        made.evaluate()
        made.predict(Rows(8))
        kept = [weakref.ref(one) for one in (made, made.model, made.teacher, made.optimizer, made.distillation_loss)]
        del made
        assert [one() for one in kept] == [None] * len(kept)
    finally:
        gc.enable()


def test_a_copy_of_a_trainer_has_parts_of_its_own(tmp_path):
    made = DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=Rows(), temperature="learned")
    other = copy.deepcopy(made)
    other.train()
    assert (other.state.global_step, made.state.global_step) == (3, 0)
    assert other.judged.host is other
    assert torch.equal(made.model.conv.weight, Net().conv.weight)
    assert not torch.equal(other.model.conv.weight, Net().conv.weight)
    del made
    other.args.max_steps = 4
    other.train()
    assert other.state.global_step == 4
