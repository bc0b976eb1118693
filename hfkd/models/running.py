"""Networks as sequences of stages that can be run one by one, from an image or a stage's output to the logits.

B images, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import ResNet
from torch import Tensor, nn

from hfkd.models.cifar import CifarNet

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class StageRunner:
    """A network's stages in order, as in `models/stages.py`, and its `head` from the last stage to the logits [B, C].

    The modules run in the network's current mode; the network's own forward, its hooks and its wrappers are not called.
    """

    stages: tuple[Step, ...]
    head: Step

    @property
    def last(self) -> int:
        return len(self.stages) - 1


def stage_runner(network: nn.Module) -> StageRunner | None:
    """The stages of a CIFAR network, a ResNet of timm or torchvision, or an EfficientNet or MobileNet of timm; else
    None.

    For transformers' wrapper of timm models, the stages of the network inside.
    """
    inner: Any = getattr(network, "timm_model", network)
    if isinstance(inner, CifarNet):
        stages = tuple(_numbered(inner, k) for k in range(len(inner.feature_info)))
        return StageRunner(stages, lambda x: inner.forward_head(inner.tail(x)))
    if type(inner) is ResNet:
        stem = (inner.conv1, inner.bn1, inner.act1)
        return StageRunner(_resnet(inner, stem), inner.forward_head)
    if type(inner).__module__ == "torchvision.models.resnet":
        stem = (inner.conv1, inner.bn1, inner.relu)
        return StageRunner(_resnet(inner, stem), lambda x: inner.fc(inner.avgpool(x).flatten(1)))
    if type(inner) in (EfficientNet, MobileNetV3):
        return _blocks(inner)
    return None


def _numbered(network: CifarNet, k: int) -> Step:
    return lambda x: network.stage(k, x)


def _in_turn(modules: Sequence[nn.Module]) -> Step:
    def run(x: Tensor) -> Tensor:
        for module in modules:
            x = module(x)
        return x

    return run


def _resnet(network: Any, stem: Sequence[nn.Module]) -> tuple[Step, ...]:
    layers = (network.layer2, network.layer3, network.layer4)
    return (_in_turn(stem), _in_turn((network.maxpool, network.layer1)), *map(_in_turn, ([one] for one in layers)))


def _blocks(network: Any) -> StageRunner | None:
    """Groups of blocks up to each entry of `feature_info`; the layers after the last of them belong to the head."""
    stem, groups = [network.conv_stem, network.bn1], list(network.blocks)
    ends = [row["module"] for row in network.feature_info]
    ends = ends[1:] if ends[0] == "bn1" else ends
    if not all(end in {f"blocks.{i}" for i in range(len(groups))} for end in ends):
        return None
    at = [0, *(int(end.partition(".")[2]) + 1 for end in ends)]
    stages = [_in_turn(groups[start:end]) for start, end in pairwise(at)]
    behind = [network.conv_head, network.bn2] if type(network) is EfficientNet else []
    rest = _in_turn([*groups[at[-1] :], *behind])
    return StageRunner((_in_turn(stem), *stages), lambda x: network.forward_head(rest(x)))
