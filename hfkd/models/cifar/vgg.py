"""VGG with batch norm for CIFAR: Simonyan and Zisserman 2015, with one linear layer (Tian et al. 2020)."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hfkd.models.cifar.base import CifarNet, cifar_cfgs, feature_info, register

WIDTHS = (64, 128, 256, 512, 512)


class CifarVGG(CifarNet):
    """Five blocks of 3x3 convolutions, with max pooling between them down to 4x4 maps.

    Feats: the five blocks after ReLU. The fourth pooling is skipped if the map is 4x4 already, so that 32x32 and 64x64
    images both reach the last block at 4x4; the reductions in `feature_info` are those for 32x32.
    """

    classifier_name = "classifier"

    def __init__(self, convolutions: Sequence[int], in_chans: int = 3, **head: Any) -> None:
        super().__init__()
        blocks, activations = [f"block{i}" for i in range(5)], [f"relu{i}" for i in range(5)]
        norms = [f"{block}.{3 * count - 2}" for block, count in zip(blocks, convolutions, strict=True)]  # the last
        self.feature_info = feature_info(WIDTHS, (1, 2, 4, 8, 8), blocks, activations, norms)
        for index, (in_width, width) in enumerate(zip((in_chans, *WIDTHS), WIDTHS, strict=False)):
            setattr(self, f"block{index}", vgg_block(in_width, width, convolutions[index]))
            setattr(self, f"relu{index}", nn.ReLU(inplace=True))
        self.init_convolutions()
        self.build_head(WIDTHS[-1], **head)

    def stage(self, index: int, x: Tensor) -> Tensor:
        if 0 < index < 4 or (index == 4 and min(x.shape[-2:]) > 4):
            x = F.max_pool2d(x, 2)
        return getattr(self, f"relu{index}")(getattr(self, f"block{index}")(x))

    def init_classifier(self, linear: nn.Linear) -> None:
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)


def vgg_block(in_width: int, width: int, convolutions: int) -> nn.Sequential:
    """conv, bn, relu, conv, bn, ...: without the last ReLU, which `stage` applies."""
    layers: list[nn.Module] = []
    for index in range(convolutions):
        conv = nn.Conv2d(in_width if index == 0 else width, width, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


NETWORKS = {
    "cifar_vgg8": {"convolutions": (1, 1, 1, 1, 1)},  # 4.0 M parameters
    "cifar_vgg13": {"convolutions": (2, 2, 2, 2, 2)},  # 9.5 M
}
default_cfgs = cifar_cfgs(*NETWORKS, classifier="classifier", first_conv="block0.0")
register(CifarVGG, NETWORKS)
