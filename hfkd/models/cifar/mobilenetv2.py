"""MobileNetV2 at half width for CIFAR: Sandler et al. 2018, in the variant of the distillation papers."""

from typing import Any

from torch import Tensor, nn

from hfkd.models.cifar.base import CifarNet, cifar_cfgs, feature_info, register

# expansion, full width, blocks, stride of the first block: table 2 of the paper, with stride 1 in the second row
ROWS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STAGES = ((0, 1), (2,), (3, 4), (5, 6))  # the rows of each stage after the stem


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1. Unlike the paper: ReLU instead of ReLU6, and a 1x1 for t = 1 too."""

    def __init__(self, in_width: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_width * expansion
        self.conv = nn.Sequential(
            *conv_bn_relu(in_width, hidden, kernel=1),
            *conv_bn_relu(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.residual = stride == 1 and in_width == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class CifarMobileNetV2(CifarNet):
    """A stem of stride 2, seven rows of inverted residuals, a 1x1 convolution to 1280 channels.

    Feats: the stem after ReLU and the linear outputs of rows 1, 2, 4 and 6, at 1/2, 1/2, 1/4, 1/8 and 1/16.
    """

    classifier_name = "classifier.0"

    def __init__(self, in_chans: int = 3, **head: Any) -> None:
        super().__init__()
        widths = [16, *(width // 2 for _, width, _, _ in ROWS)]
        rows = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")  # linear: without an activation at the end
        self.feature_info = feature_info(
            (16, 12, 16, 48, 160), (2, 2, 4, 8, 16), ("conv1", *rows), ("conv1", *rows), ("conv1.2:in", *rows)
        )
        self.conv1 = conv_bn_relu(in_chans, 16, kernel=3, stride=2)
        self.blocks = nn.ModuleList()
        for row, in_width, width in zip(ROWS, widths, widths[1:], strict=False):
            self.blocks.append(mobile_row(in_width, width, *row))
        self.conv2 = conv_bn_relu(widths[-1], 1280, kernel=1)
        self.classifier = nn.Sequential()
        self.init_convolutions()
        self.build_head(1280, **head)

    def stage(self, index: int, x: Tensor) -> Tensor:
        if index == 0:
            return self.conv1(x)
        for row in STAGES[index - 1]:
            x = self.blocks[row](x)
        return x

    def tail(self, x: Tensor) -> Tensor:
        return self.conv2(x)

    def init_classifier(self, linear: nn.Linear) -> None:
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)


def conv_bn_relu(in_width: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_width, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def mobile_row(in_width: int, width: int, expansion: int, _full: int, blocks: int, stride: int) -> nn.Sequential:
    first = InvertedResidual(in_width, width, stride, expansion)
    return nn.Sequential(first, *(InvertedResidual(width, width, 1, expansion) for _ in range(blocks - 1)))


default_cfgs = cifar_cfgs("cifar_mobilenetv2", classifier="classifier.0", first_conv="conv1.0")
register(CifarMobileNetV2, {"cifar_mobilenetv2": {}})  # at half width, 0.81 M parameters
