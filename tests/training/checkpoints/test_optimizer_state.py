"""A resumed run in another memory layout than its checkpoint's: the same optimizer state for the same weight."""

import pytest
import torch
from toys import CLASSES, Rows, arguments
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from hfkd import DistillationTrainer
from hfkd.training.checkpoints.optimizer_state import as_laid_out

STEPS, CUT = 6, 3
SETTINGS = {"save_strategy": "steps", "save_steps": CUT, "learning_rate": 0.01, "seed": 3}


def student():
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=CLASSES)
    return ResNetForImageClassification(config)


def run(folder, channels_last, steps, resume=None, **keywords):
    args = arguments(
        folder, ce_weight=1.0, kd_weight=0.0, channels_last=channels_last, max_steps=steps, **(SETTINGS | keywords)
    )
    made = DistillationTrainer(student(), None, args, train_dataset=Rows())
    made.train(resume_from_checkpoint=resume)
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "sgd", "rmsprop"])
@pytest.mark.parametrize("before", [False, True])
def test_switching_channels_last_between_two_sessions_changes_nothing_but_rounding(tmp_path, optim, before):
    momentum = {"optim_args": "momentum=0.9"} if optim == "sgd" else {}
    whole = run(tmp_path / "whole", before, STEPS, optim=optim, **momentum)
    run(tmp_path / "cut", before, CUT, optim=optim, **momentum)
    resumed = run(tmp_path / "cut", not before, STEPS, resume=True, optim=optim, **momentum)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=1e-4)


def test_a_checkpoint_of_plain_trainer_goes_on_as_it_would_there(tmp_path, caplog):
    """With its groups of weight decay, which those of a run here are not: Trainer decays batch norms' weights."""
    common = {"per_device_train_batch_size": 8, "lr_scheduler_type": "constant", "max_grad_norm": 0.0} | SETTINGS
    common["weight_decay"] = 0.1
    more = {"bf16": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
    plain = Trainer(
        student(), TrainingArguments(str(tmp_path / "plain"), max_steps=STEPS, **common, **more), train_dataset=Rows()
    )
    plain.train()
    whole = torch.cat([p.detach().flatten() for p in plain.model.parameters()])
    checkpoint = str(tmp_path / "plain" / f"checkpoint-{CUT}")
    resumed = run(tmp_path / "here", True, STEPS, resume=checkpoint, optim="adamw_torch_fused", weight_decay=0.1)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=1e-4)
    assert "has the weights of norms among those with weight decay, and goes on so" in caplog.text


def test_moments_that_an_optimizer_brings_along_stay_with_their_weights(tmp_path):
    """The user's optimizer has taken a step before the trainer makes the weights channels_last."""
    found = []
    for channels_last in (False, True):
        network = student()
        own = torch.optim.AdamW(network.parameters(), lr=0.01, fused=True)
        network(pixel_values=Rows().images[:8], labels=Rows().labels[:8]).loss.backward()
        own.step()
        args = arguments(tmp_path, ce_weight=1.0, kd_weight=0.0, channels_last=channels_last)
        DistillationTrainer(network, None, args, train_dataset=Rows(), optimizers=(own, None)).train()
        found.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)


def test_a_quantized_state_of_another_layout_is_refused():
    weight = torch.nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD([weight])
    optimizer.state[weight] = {"state1": torch.zeros(4, 3, 2, 2, dtype=torch.uint8), "step": 3}
    with pytest.raises(ValueError, match=r"quantized \(torch.uint8\)"):
        as_laid_out(optimizer)
