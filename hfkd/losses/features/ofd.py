"""OFD: the teacher's map before its ReLU, with negative values clipped at a margin.

B images, C channels, H and W pixels.
"""

import math

import torch
from torch import Tensor, nn

from hfkd.losses.context import BuildContext, NetworkContext
from hfkd.losses.features.maps import in_float32, resized, through
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import checked
from hfkd.utils.feature_keys import Layer, Layers


@register_objective("ofd")
@checked
class OFD(LayerPairs):
    """Overhaul of feature distillation (Heo et al., ICCV 2019).

        l_s = sum over layers k = 1..n of  2^(k - n) sum_chw [y > t' or t > 0] (y - t')^2,    t' = max(t, m_c)

    y is the student's map before its ReLU, passed through a trained connector (1x1 convolution and batch norm); t is
    the teacher's before its ReLU, pooled to the size of y. m_c < 0 is the mean of the channel's negative values, from
    the teacher's batch norm before that ReLU (`margins`). It is a sum over the map, not a mean. A value depends on its
    own sample, except through the connectors' batch norms. Published weight beside the cross-entropy: 1e-3, on ImageNet
    1e-4.

    The teacher's batch norms use their running statistics here; mdistiller leaves them in train mode. For networks with
    different numbers of stages, mdistiller aligns features from the last stage, but margins from the first.
    """

    maps = True

    def __init__(self, layers: Layer | Layers = "pre:1:", teacher_layers: Layer | Layers | None = None) -> None:
        super().__init__(layers, teacher_layers)
        self.layers, self.teacher_layers = layers, teacher_layers

    def build(self, context: BuildContext) -> None:
        super().build(context)
        pairs = self.pairs or ()
        self.connectors = nn.ModuleList(
            Connector(context.student.shape(mine)[0], context.teacher.shape(theirs)[0]) for mine, theirs in pairs
        )
        for k, (_, theirs) in enumerate(pairs):
            margin = margins(batch_norm_before(context.teacher, theirs)).float()
            self.register_buffer(f"margin{k}", margin, persistent=False)

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        values, pairs = [], list(self.read(items))
        for k, (student, teacher) in enumerate(pairs):
            margin = getattr(self, f"margin{k}").to(teacher.device)
            values.append(ofd(through(self.connectors[k], student), teacher, margin) / 2 ** (len(pairs) - 1 - k))
        return torch.stack(values).sum(0)


def batch_norm_before(network: NetworkContext, key: str) -> nn.BatchNorm2d:
    """The batch norm whose output this feature is, or the last one before the module of this feature.

    Raises ValueError if there is none with the map's number of channels.
    """
    module, width = network.modules[key], network.shape(key)[0]
    if isinstance(module, nn.BatchNorm2d):
        return module
    for parent in network.network.modules():
        children = list(parent.children())
        place = next((i for i, child in enumerate(children) if child is module), 0)
        norms = [x for x in children[:place] if isinstance(x, nn.BatchNorm2d) and x.affine and x.num_features == width]
        if norms:
            return norms[-1]
    raise ValueError(
        f"layer {key!r} of the teacher: ofd takes the margin from the batch norm before the activation, but "
        f"{type(network.network).__name__} has no batch norm of {width} channels there; name layers such as 'pre:1:', "
        "or the path of a batch norm"
    )


class Connector(nn.Sequential):
    """A 1x1 convolution to the teacher's number of channels and a batch norm, without a ReLU."""

    def __init__(self, student_width: int, teacher_width: int) -> None:
        conv = nn.Conv2d(student_width, teacher_width, 1, bias=False)
        nn.init.normal_(conv.weight, std=math.sqrt(2 / teacher_width))
        super().__init__(conv, nn.BatchNorm2d(teacher_width))


def margins(batch_norm: nn.BatchNorm2d) -> Tensor:
    """E[x | x < 0] of each channel, x ~ N(bias, weight^2) as after the batch norm: [C], below 0.

    It is -3 |weight| where fewer than one value in a thousand is negative.
    """
    scale = batch_norm.weight.detach().cpu().double().abs().clamp(min=1e-12)
    mean = batch_norm.bias.detach().cpu().double()
    share = torch.special.ndtr(-mean / scale)
    density = torch.exp(-((mean / scale) ** 2) / 2) / math.sqrt(2 * math.pi)
    return torch.where(share > 1e-3, mean - scale * density / share.clamp(min=1e-3), -3 * scale)


@in_float32
def ofd(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """The partial L2 distance of each image [B]: student [B, C, H, W] through its connector, teacher before its ReLU.

    sum_chw (y - max(t, m))^2 where y > max(t, m) or t > 0; the teacher's map is pooled to the student's size.
    """
    teacher = resized(teacher, *student.shape[-2:])
    target = torch.maximum(teacher, margin.to(teacher.dtype).view(-1, 1, 1))
    counts = (student > target) | (teacher > 0)
    return ((student - target).square() * counts).flatten(1).sum(1)
