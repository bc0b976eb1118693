"""ShuffleNets for CIFAR, with a 1x1 stem: V1 Zhang et al. 2018 (3 groups), V2 Ma et al. 2018 (1x)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfkd.models.cifar.base import CifarNet, cifar_cfgs, feature_info, register

STEM = 24
GROUPS = 3


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel i of group g becomes channel i * groups + g."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def conv(in_width: int, width: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_width, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class ShuffleV1Block(nn.Module):
    """Grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1; at stride 2 the pooled input is appended, else added."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        out_width = width - in_width if stride == 2 else width
        middle = out_width // 4
        self.stride = stride
        self.groups = 1 if in_width == STEM else GROUPS  # the stem is too narrow to be split
        self.conv1 = conv(in_width, middle, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = conv(middle, middle, kernel=3, stride=stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = conv(middle, out_width, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(out_width)
        self.relu = nn.ReLU(inplace=True)  # the last ReLU of the block

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = channel_shuffle(out, self.groups)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return self.relu(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1))
        return self.relu(out + x)


class CifarShuffleNetV1(CifarNet):
    """Stages of 4, 8 and 4 blocks, 240, 480 and 960 wide, at 1/2, 1/4 and 1/8. Feats: stem and stages after ReLU."""

    classifier_name = "linear"

    def __init__(self, in_chans: int = 3, **head: Any) -> None:
        super().__init__()
        layers, sums = ("layer1", "layer2", "layer3"), ("layer1.3.relu:in", "layer2.7.relu:in", "layer3.3.relu:in")
        widths, reductions = (STEM, 240, 480, 960), (1, 2, 4, 8)
        self.feature_info = feature_info(widths, reductions, ("bn1", *layers), ("relu", *layers), ("relu:in", *sums))
        self.conv1 = conv(in_chans, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = v1_stage(STEM, 240, blocks=4)
        self.layer2 = v1_stage(240, 480, blocks=8)
        self.layer3 = v1_stage(480, 960, blocks=4)
        self.build_head(960, **head)


def v1_stage(in_width: int, width: int, blocks: int) -> nn.Sequential:
    first = ShuffleV1Block(in_width, width, stride=2)
    return nn.Sequential(first, *(ShuffleV1Block(width, width, stride=1) for _ in range(blocks - 1)))


class ShuffleV2Block(nn.Module):
    """Half of the channels pass through, half go through 1x1, 3x3 depthwise, 1x1; then the halves are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = conv(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, kernel=3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.join = ReluAndJoin()

    def forward(self, x: Tensor) -> Tensor:
        passed, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)), inplace=True)
        out = self.bn2(self.conv2(out))
        return channel_shuffle(self.join(passed, self.bn3(self.conv3(out))), 2)


class ReluAndJoin(nn.Module):
    """The last ReLU of a block, on the half that is not passed through, and the concatenation of both halves."""

    def forward(self, passed: Tensor, out: Tensor) -> Tensor:
        return torch.cat([passed, F.relu(out, inplace=True)], 1)


class ShuffleV2Down(nn.Module):
    """Halves the size in two branches: 3x3 depthwise, 1x1 on the left; 1x1, 3x3 depthwise, 1x1 on the right."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = conv(in_width, in_width, kernel=3, stride=2, groups=in_width)
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv2 = conv(in_width, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(in_width, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, kernel=3, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)), inplace=True)
        return channel_shuffle(torch.cat([left, right], 1), 2)


class CifarShuffleNetV2(CifarNet):
    """Stages of 4, 8 and 4 blocks, 116, 232 and 464 wide, at 1/2, 1/4 and 1/8, then a 1x1 convolution to 1024 channels.

    Feats: the stem and the stages after ReLU and shuffle, before the 1x1 convolution.
    """

    classifier_name = "linear"

    def __init__(self, in_chans: int = 3, **head: Any) -> None:
        super().__init__()
        layers = ("layer1", "layer2", "layer3")
        halves = ("layer1.3.join:parts", "layer2.7.join:parts", "layer3.3.join:parts")
        widths, reductions = (STEM, 116, 232, 464), (1, 2, 4, 8)
        self.feature_info = feature_info(widths, reductions, ("bn1", *layers), ("relu", *layers), ("relu:in", *halves))
        self.conv1 = conv(in_chans, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = v2_stage(STEM, 116, blocks=4)
        self.layer2 = v2_stage(116, 232, blocks=8)
        self.layer3 = v2_stage(232, 464, blocks=4)
        self.conv2 = conv(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.build_head(1024, **head)

    def tail(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(x)), inplace=True)


def v2_stage(in_width: int, width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(ShuffleV2Down(in_width, width), *(ShuffleV2Block(width) for _ in range(blocks - 1)))


default_cfgs = cifar_cfgs("cifar_shufflenetv1", "cifar_shufflenetv2", classifier="linear")
register(CifarShuffleNetV1, {"cifar_shufflenetv1": {}})  # with 3 groups, 0.95 M parameters
register(CifarShuffleNetV2, {"cifar_shufflenetv2": {}})  # 1x, 1.4 M
