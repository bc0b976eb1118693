"""A convolution that torch computes wrongly in channels_last on a CPU is kept from that layout."""

import logging

import pytest
import torch
from processes import start
from torch import nn
from toys import CLASSES, Net, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.losses.features.pairs import LayerPairs


def network(channels, stride=2):
    torch.manual_seed(0)
    first = nn.Conv2d(3, channels, 3, padding=1)
    return nn.Sequential(first, nn.Conv2d(channels, 4, 1, stride=stride), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def build(folder, channels, stride=2, **settings):
    rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": i % 4} for i in range(16)]
    args = arguments(folder, ce_weight=1.0, kd_weight=0.0, bf16=False, **settings)
    return DistillationTrainer(network(channels, stride), None, args, train_dataset=rows)


def train_both_ways(folder):
    """In a process of its own: what goes wrong here ends it by a signal."""
    weights = []
    for layout in (True, False):
        torch.manual_seed(0)
        trainer = build(f"{folder}/{layout}", 6, channels_last=layout, max_steps=20)
        trainer.train()
        weights.append(trainer.model[1].weight.detach())
    assert torch.equal(*weights)


@pytest.mark.slow
def test_such_a_network_trains_as_without_channels_last(tmp_path):
    process = start(train_both_ways, str(tmp_path))
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize(("channels", "stride", "left_out"), [(6, 2, True), (16, 2, False), (6, 1, False)])
def test_it_is_said_which_convolution_it_is(tmp_path, caplog, channels, stride, left_out):
    with caplog.at_level(logging.WARNING, "hfkd"):
        trainer = build(tmp_path, channels, stride)
    assert ("channels_last is not used: 1 is a 1 x 1 convolution" in caplog.text) is left_out
    assert trainer.model[0].weight.is_contiguous(memory_format=torch.channels_last) is not left_out


class Strided(LayerPairs):
    """A connector of somebody's own: (r(s) - t)^2 of maps, every second pixel."""

    def __init__(self):
        super().__init__("conv", None)

    def build(self, context):
        super().build(context)
        self.connector = nn.Conv2d(context.student.shape("conv")[0], context.teacher.shape("conv")[0], 1, stride=2)

    def forward(self, items, temperature):
        ((s, t),) = self.read(items)
        return (self.connector(s) - t[..., ::2, ::2]).square().flatten(1).mean(1)


def test_one_that_the_loss_trains_is_refused_with_the_remedy(tmp_path):
    rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": i % CLASSES} for i in range(16)]
    given = {"train_dataset": rows, "objective": Strided()}
    with pytest.raises(ValueError, match=r"connector, a part of the loss, .* pass channels_last=False"):
        DistillationTrainer(Net(), teacher(), arguments(tmp_path), **given)
    DistillationTrainer(Net(), teacher(), arguments(tmp_path, channels_last=False), **given)
