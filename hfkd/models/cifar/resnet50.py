"""ResNet-50 with a CIFAR stem: He et al. 2016, 3x3 stem of stride 1 and no pooling."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hfkd.models.cifar.base import CifarNet, cifar_cfgs, feature_info, register

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a (projected) identity; the output is four times `width` wide."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        out_width = EXPANSION * width
        self.conv1 = nn.Conv2d(in_width, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_width != out_width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_width, out_width, 1, stride, bias=False), nn.BatchNorm2d(out_width)
            )
        self.relu = nn.ReLU(inplace=True)  # the last ReLU of the block

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.shortcut(x))


class CifarResNet50(CifarNet):
    """Stages of 3, 4, 6 and 3 bottlenecks at 1, 1/2, 1/4 and 1/8 of the input size.

    Feats: the stem and the stages, all after ReLU.
    """

    classifier_name = "linear"

    def __init__(self, in_chans: int = 3, **head: Any) -> None:
        super().__init__()
        layers = ("layer1", "layer2", "layer3", "layer4")
        sums = ("relu:in", "layer1.2.relu:in", "layer2.3.relu:in", "layer3.5.relu:in", "layer4.2.relu:in")
        widths, reductions = (64, 256, 512, 1024, 2048), (1, 1, 2, 4, 8)
        self.feature_info = feature_info(widths, reductions, ("bn1", *layers), ("relu", *layers), sums)
        self.conv1 = nn.Conv2d(in_chans, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = bottleneck_stage(64, 64, blocks=3, stride=1)
        self.layer2 = bottleneck_stage(256, 128, blocks=4, stride=2)
        self.layer3 = bottleneck_stage(512, 256, blocks=6, stride=2)
        self.layer4 = bottleneck_stage(1024, 512, blocks=3, stride=2)
        self.init_convolutions()
        self.build_head(2048, **head)


def bottleneck_stage(in_width: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_width, width, stride)
    return nn.Sequential(first, *(Bottleneck(EXPANSION * width, width, 1) for _ in range(blocks - 1)))


default_cfgs = cifar_cfgs("cifar_resnet50", classifier="linear")
register(CifarResNet50, {"cifar_resnet50": {}})  # 23.7 M parameters
