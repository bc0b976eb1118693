"""What is said of an optimizer is what it gets."""

from importlib.util import find_spec

import pytest
import torch
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer


def made(folder, cls_and_kwargs=None, **settings):
    args = arguments(folder, **settings)
    return DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(), optimizer_cls_and_kwargs=cls_and_kwargs)


@pytest.mark.parametrize(
    ("optim", "given", "unread"),
    [
        ("sgd", "mometum=0.9", "mometum would have no effect with optim='sgd'"),
        ("sgd", "momentum=0.9, weight_decay=5e-4", "weight_decay would have no effect"),
        ("adamw_torch", "beta2=0.95", "beta2 would have no effect with optim='adamw_torch'"),
        ("rmsprop", "alpha=0.9,betas=0.8,lr=1", "betas, lr would have no effect"),
        ("sgd", "momentum", "must be name=value"),
    ],
)
def test_settings_that_the_optimizer_does_not_read_are_refused(tmp_path, optim, given, unread):
    with pytest.raises(ValueError, match=unread):
        made(tmp_path, optim=optim, optim_args=given)


@pytest.mark.parametrize(
    ("optim", "given"),
    [
        ("sgd", "momentum=0.9,nesterov=True,dampening=0"),
        ("rmsprop", "centered=True, eps=1e-6"),
        ("adagrad", "lr_decay=0.1"),
        ("sgd", ""),
    ],
)
def test_those_that_it_reads_are_not(tmp_path, optim, given):
    run = made(tmp_path, optim=optim, optim_args=given)
    assert run.args.optim_args == given


@pytest.mark.skipif(find_spec("galore_torch") is not None, reason="it is installed")
def test_an_optimizer_that_is_not_installed_is_refused_before_a_training(tmp_path):
    """Trainer would say so in `train()`, after the teacher's scan."""
    args = arguments(tmp_path, optim="galore_adamw", optim_args="rank=64", optim_target_modules="all-linear")
    with pytest.raises(ValueError, match="optim='galore_adamw' cannot be made: You need to install `galore_torch`"):
        DistillationTrainer(Net(), teacher(), args, train_dataset=Rows())
    assert "eval_loss" in DistillationTrainer(Net(), None, args, eval_dataset=Rows(), kd_weight=0.0).evaluate()
    own = (torch.optim.SGD, {"lr": 0.1})
    DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(), optimizer_cls_and_kwargs=own)


def test_the_weight_decay_is_that_of_the_arguments(tmp_path):
    kind = torch.optim.SGD
    with pytest.raises(ValueError, match=r"has weight_decay=0.0005, but .* is 0.0: set weight_decay there"):
        made(tmp_path, (kind, {"lr": 0.1, "weight_decay": 5e-4}))
    for given in ({"lr": 0.1}, {"lr": 0.1, "weight_decay": 5e-4}):
        run = made(tmp_path, (kind, given), weight_decay=5e-4)
        assert run.settings["weight_decay"] == 5e-4
        assert run.create_optimizer().param_groups[0]["weight_decay"] == 5e-4


@pytest.mark.parametrize(
    ("settings", "unread"),
    [
        ({"optim": "galore_adamw", "weight_decay": 0.05, "adam_beta2": 0.95}, "weight_decay=0.05, adam_beta2=0.95"),
        ({"optim": "apollo_adamw", "weight_decay": 0.05, "adam_beta2": 0.95}, "weight_decay=0.05"),
        ({"optim": "adalomo", "weight_decay": 0.05}, "weight_decay=0.05"),
    ],
)
def test_arguments_that_trainer_keeps_from_the_optimizer_are_refused(tmp_path, settings, unread):
    with pytest.raises(ValueError, match=f"^{unread} would have no effect with optim='{settings['optim']}'"):
        made(tmp_path, optim_target_modules="all-linear", **settings)


@pytest.mark.parametrize("optim", ["schedule_free_adamw", "schedule_free_sgd"])
def test_the_warm_up_of_a_schedule_free_optimizer_is_a_number_of_steps(tmp_path, optim, caplog):
    plan = {"optim": optim, "lr_scheduler_type": "constant"}
    with pytest.raises(ValueError, match=r"warmup_steps=0.1 is a share of all steps, .* of its first step by 10: set"):
        arguments(tmp_path, warmup_steps=0.1, **plan)
    assert arguments(tmp_path, warmup_steps=10, **plan).warmup_steps == 10
    assert "warmup_steps=10 has no effect" not in caplog.text  # as it has with other optimizers
