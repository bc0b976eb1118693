"""A convolution that torch computes wrongly in channels_last on a CPU is named when the trainer is built."""

import pytest
import torch
from torch import nn
from toys import arguments

from hfkd import DistillationTrainer


def network(channels):
    first = nn.Conv2d(3, channels, 3, padding=1)
    return nn.Sequential(first, nn.Conv2d(channels, 4, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def build(folder, channels, **settings):
    rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": i % 4} for i in range(4)]
    args = arguments(folder, ce_weight=1.0, kd_weight=0.0, **settings)
    return DistillationTrainer(network(channels), None, args, train_dataset=rows)


def test_it_is_named_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"1 is a 1 x 1 convolution of 6 channels .* pass channels_last=False"):
        build(tmp_path / "refused", 6)
    build(tmp_path / "told", 6, channels_last=False).train()
    build(tmp_path / "wide", 8).train()
