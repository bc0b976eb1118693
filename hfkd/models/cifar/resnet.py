"""ResNets for CIFAR: He et al. 2016, section 4.2; "x4" has four times the width (Tian et al. 2020)."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hfkd.models.cifar.base import CifarNet, cifar_cfgs, feature_info, register


class BasicBlock(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))), with a projected x where width or size changes."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_width != width:
            self.downsample = nn.Sequential(nn.Conv2d(in_width, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.relu = nn.ReLU(inplace=True)  # the last ReLU of the block

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.downsample(x))


class CifarResNet(CifarNet):
    """6n+2 layers: a 3x3 stem and three stages of n basic blocks at 1, 1/2 and 1/4 of the input size.

    Feats: the stem and the stages, all after ReLU. `widths` are the stem's and the stages'.
    """

    def __init__(self, depth: int, widths: Sequence[int] = (16, 16, 32, 64), in_chans: int = 3, **head: Any) -> None:
        super().__init__()
        assert (depth - 2) % 6 == 0, depth
        blocks, layers = (depth - 2) // 6, ("layer1", "layer2", "layer3")
        sums = ("relu:in", *(f"{layer}.{blocks - 1}.relu:in" for layer in layers))
        self.feature_info = feature_info(widths, (1, 1, 2, 4), ("bn1", *layers), ("relu", *layers), sums)
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = basic_stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = basic_stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = basic_stage(widths[2], widths[3], blocks, stride=2)
        self.init_convolutions()
        self.build_head(widths[3], **head)


def basic_stage(in_width: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_width, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))


X4 = (32, 64, 128, 256)

NETWORKS: dict[str, dict[str, Any]] = {
    "cifar_resnet8": {"depth": 8},  # 0.08 M parameters
    "cifar_resnet14": {"depth": 14},  # 0.18 M
    "cifar_resnet20": {"depth": 20},  # 0.28 M
    "cifar_resnet32": {"depth": 32},  # 0.47 M
    "cifar_resnet56": {"depth": 56},  # 0.86 M
    "cifar_resnet110": {"depth": 110},  # 1.7 M
    "cifar_resnet8x4": {"depth": 8, "widths": X4},  # 1.2 M, the usual student of ResNet-32x4
    "cifar_resnet32x4": {"depth": 32, "widths": X4},  # 7.4 M
}
default_cfgs = cifar_cfgs(*NETWORKS)
register(CifarResNet, NETWORKS)
