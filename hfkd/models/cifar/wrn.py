"""Wide residual networks: Zagoruyko and Komodakis 2016."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hfkd.models.cifar.base import CifarNet, cifar_cfgs, feature_info, register


class PreActBlock(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))); if the width changes, the shortcut projects relu(bn(x)) instead of x."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(in_width, width, 1, stride, bias=False) if in_width != width else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out = F.relu(self.bn2(self.conv1(active)), inplace=True)
        return shortcut + self.conv2(out)


class PreActStage(nn.Module):
    def __init__(self, in_width: int, width: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = PreActBlock(in_width, width, stride)
        self.layer = nn.Sequential(first, *(PreActBlock(width, width, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class CifarWideResNet(CifarNet):
    """6n+4 layers, three stages `widen` times 16, 32, 64 wide at 1, 1/2 and 1/4 of the input size.

    Feats: the raw outputs of the stem and of the stages, before the next batch norm and ReLU. The features before the
    activation are the outputs of that batch norm.
    """

    def __init__(self, depth: int, widen: int, in_chans: int = 3, **head: Any) -> None:
        super().__init__()
        assert (depth - 4) % 6 == 0, depth
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        stages = ("conv1", "block1", "block2", "block3")
        normalised = (*(f"block{i}.layer.0.bn1" for i in (1, 2, 3)), "bn1")  # the next batch norm's
        self.feature_info = feature_info(widths, (1, 1, 2, 4), stages, stages, normalised)
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.block1 = PreActStage(widths[0], widths[1], blocks, stride=1)
        self.block2 = PreActStage(widths[1], widths[2], blocks, stride=2)
        self.block3 = PreActStage(widths[2], widths[3], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.init_convolutions()
        self.build_head(widths[3], **head)

    def stage(self, index: int, x: Tensor) -> Tensor:
        return self.conv1(x) if index == 0 else getattr(self, f"block{index}")(x)

    def tail(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(x), inplace=True)

    def init_classifier(self, linear: nn.Linear) -> None:
        nn.init.zeros_(linear.bias)


NETWORKS = {
    "cifar_wrn_16_2": {"depth": 16, "widen": 2},  # 0.70 M parameters
    "cifar_wrn_40_1": {"depth": 40, "widen": 1},  # 0.57 M
    "cifar_wrn_40_2": {"depth": 40, "widen": 2},  # 2.3 M
    "cifar_wrn_28_4": {"depth": 28, "widen": 4},  # 5.9 M
}
default_cfgs = cifar_cfgs(*NETWORKS)
register(CifarWideResNet, NETWORKS)
