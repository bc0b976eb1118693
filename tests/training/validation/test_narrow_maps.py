"""In bfloat16 on a CPU torch computes the gradient of a convolution over maps narrower than its stride wrongly."""

import pytest
import torch
from torch import nn
from toys import arguments

from hfkd import DistillationTrainer


def network(stride, kernel=3):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, kernel, stride=stride, padding=kernel // 2)
    first = nn.Conv2d(3, 4, 3, stride=4, padding=1)  # 8 x 8 pixels become 2 x 2
    return nn.Sequential(first, nn.ReLU(), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def build(folder, network, rows=None, **settings):
    rows = rows or [{"pixel_values": torch.randn(3, 8, 8), "labels": i % 4} for i in range(16)]
    args = arguments(folder, ce_weight=1.0, kd_weight=0.0, **settings)
    return DistillationTrainer(network, None, args, train_dataset=rows)


@pytest.mark.parametrize("channels_last", [True, False])
def test_such_a_convolution_is_refused_in_bfloat16(tmp_path, channels_last):
    with pytest.raises(
        ValueError, match=r"2 of the student: .* maps of 2 pixels in width, .* pass bf16=False, or larg"
    ):
        build(tmp_path, network(stride=3), bf16=True, channels_last=channels_last)
    build(tmp_path, network(stride=3), bf16=False, channels_last=channels_last).train()


@pytest.mark.parametrize(("stride", "kernel"), [(2, 3), (3, 1), (1, 3)])
def test_others_are_not(tmp_path, stride, kernel):
    build(tmp_path, network(stride, kernel), bf16=True)


@pytest.mark.parametrize(("kernel", "refused"), [(3, True), (4, False)])
def test_a_transposed_one_is_refused_if_it_makes_such_maps(tmp_path, kernel, refused):
    first = nn.Conv2d(3, 4, 3, stride=8, padding=1)  # 8 x 8 pixels become 1 x 1
    made = nn.ConvTranspose2d(4, 4, kernel, stride=2, padding=1)  # and then 1 x 1 or 2 x 2
    student = nn.Sequential(first, nn.ReLU(), made, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if not refused:
        build(tmp_path, student, bf16=True)
        return
    with pytest.raises(ValueError, match=r"2 of the student: the images leave maps of 1 pixels in width"):
        build(tmp_path, student, bf16=True)


def test_one_that_is_frozen_is_not(tmp_path):
    frozen = network(stride=3)
    frozen[2].requires_grad_(False)
    build(tmp_path, frozen, bf16=True)


def test_a_stream_is_looked_at_before_its_first_step(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from ({"pixel_values": torch.randn(3, 8, 8), "labels": i % 4} for i in range(32))

    with pytest.raises(ValueError, match="maps of 2 pixels in width"):
        build(tmp_path, network(stride=3), Stream(), bf16=True).train()
