"""The gradients of layer norms in bfloat16 on a CPU are those of float32, however many rows they have."""

import pytest
import torch
from torch import nn
from toys import CLASSES, Rows, arguments

from hfkd import DistillationTrainer


class PixelNet(nn.Module):
    """Each pixel is a row of the layer norm, whose bias gets a gradient of the same sign from all of an image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.head = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.norm(self.embed(x.flatten(2).transpose(1, 2))).mean(1))


def step_of(folder, bf16):
    """What one step of SGD adds to the layer norm's weight and bias."""
    student = PixelNet()
    args = arguments(folder, ce_weight=1.0, kd_weight=0.0, max_steps=1, learning_rate=1.0, bf16=bf16)
    DistillationTrainer(student, None, args, train_dataset=Rows(8, size=64)).train()
    assert not student.norm._forward_pre_hooks
    return student.norm.weight.detach() - 1, student.norm.bias.detach()


def test_a_step_is_that_of_float32(tmp_path):
    for half, whole in zip(step_of(tmp_path / "half", True), step_of(tmp_path / "whole", False), strict=True):
        assert (half - whole).norm() < 0.05 * whole.norm()


@pytest.mark.parametrize("bf16", [True, False])
def test_a_frozen_one_stays_as_it_is(tmp_path, bf16):
    seen = []

    class Frozen(PixelNet):
        def forward(self, x):
            found = self.norm(self.embed(x.flatten(2).transpose(1, 2)))
            seen.append(found.dtype)
            return self.head(found.mean(1))

    student = Frozen()
    student.norm.requires_grad_(False)
    args = arguments(tmp_path, ce_weight=1.0, kd_weight=0.0, max_steps=1, bf16=bf16)
    DistillationTrainer(student, None, args, train_dataset=Rows(8)).train()
    assert seen[-1] == (torch.bfloat16 if bf16 else torch.float32)
