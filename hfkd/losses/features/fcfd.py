"""FCFD: a student's feature, passed on through the teacher's stages, should give the teacher's outputs, and vice versa.

B images, C channels, H and W pixels; n stages.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hfkd.losses.base import Requirements
from hfkd.losses.context import BuildContext
from hfkd.losses.features.maps import in_float32, mean_squares, through
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.features.running_stages import RunningStages, kept_statistics
from hfkd.losses.items import Items, warmed_up
from hfkd.losses.logits.divergences import KD
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import Count, NotNegative, checked


@register_objective("fcfd")
@checked
class FCFD(LayerPairs):
    """Function-consistent feature distillation (Liu et al., ICLR 2023).

        l_s = feature_weight min(e / warmup_epochs, 1) sum_k D_k + mixture_weight sum over paths of T² KL(p_t || p_path)

    D_k are mean squared differences from the output of the teacher's stage k: of the student's stage k through a
    trained `Bridge`, and of the output of stage k on each mixed path from the student to the teacher; at the last stage
    also the differences after ReLU and pooling. A mixed path begins in one network and continues, through a bridge, in
    the other's stages. There are 2 (n - 1) of them, of which each step draws `paths` as a function of (seed, step). A
    value depends on its own sample, except through batch norms. T is used; the plain KL(p_t || p_s) is a term of its
    own: use "kd + fcfd" with kd_weight 1 beside the cross-entropy.

    Published: T = 4 (8 for ResNet32x4 to ShuffleNets, ResNet50 to MobileNetV2; 1 on ImageNet), mixture_weight=0.2 for
    WRN-16-2, feature_weight=0.02 for ResNet20 and for ResNet18 on ImageNet. The teacher is frozen here. In the released
    code its batch norms use and update batch statistics, and those of mixed paths have separate running statistics,
    which start at variance 0. In the authors' entropy-weighted version (ER-FCFD) a broadcast makes the pooled part the
    same for all images; here, with `weighting="entropy"`, each image has its own.
    """

    maps = True
    softens = True

    def __init__(
        self,
        paths: Count = 2,
        feature_weight: NotNegative = 5.0,
        mixture_weight: NotNegative = 1.0,
        warmup_epochs: NotNegative = 20,
    ) -> None:
        super().__init__("1:", None)
        self.paths, self.feature_weight, self.mixture_weight = paths, feature_weight, mixture_weight
        self.warmup_epochs = warmup_epochs

    def requirements(self) -> Requirements:
        return replace(super().requirements(), epochs=self.warmup_epochs, signals=False)

    def build(self, context: BuildContext) -> None:
        super().build(context)
        pairs = self.pairs or ()
        shapes = [(context.student.shape(mine), context.teacher.shape(theirs)) for mine, theirs in pairs]
        self.last = len(pairs)
        self.mixed = tuple(Path(k, to_teacher) for to_teacher in (True, False) for k in range(1, self.last))
        if self.paths > len(self.mixed):
            raise ValueError(
                f"{self!r}: paths={self.paths}, but {self.last} stages have {len(self.mixed)} mixed paths: set paths "
                "to that number or less"
            )
        # In a tuple, so that the networks are not submodules.
        networks = (("student", context.student), ("teacher", context.teacher))
        self.networks = tuple(RunningStages("fcfd", name, network) for name, network in networks)
        student, teacher = (network.gives_rectified(2, shapes[0][side]) for side, network in enumerate(self.networks))
        self.to_teacher = nn.ModuleList(Bridge(s, t, teacher) for s, t in shapes)
        self.to_student = nn.ModuleList(Bridge(t, s, student) for s, t in shapes[:-1])

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        maps = list(self.read(items))
        bridged = [through(bridge, s) for bridge, (s, _) in zip(self.to_teacher, maps, strict=True)]
        differences = [self._difference(k, x, maps[k][1]) for k, x in enumerate(bridged)]
        divergences = [torch.zeros_like(differences[0])]
        for path in self.drawn(items.seed, items.step):
            outputs, logits = self.run(path, bridged, maps)
            mixed = replace(items, student=replace(items.student, logits=logits))
            divergences.append(KD()(mixed, temperature))
            if path.to_teacher:
                differences += [self._difference(k, x, maps[k][1]) for k, x in enumerate(outputs, path.start)]
        features = self.feature_weight * warmed_up(items.progress, self.warmup_epochs) * torch.stack(differences).sum(0)
        return features + self.mixture_weight * torch.stack(divergences).sum(0) + self._not_drawn()

    def _difference(self, k: int, x: Tensor, teacher: Tensor) -> Tensor:
        """D between x and the output of the teacher's stage k + 1: [B]."""
        value = mean_squares(x, teacher)
        return value + pooled_squares(x, teacher) if k == self.last - 1 else value

    def drawn(self, seed: int, step: int) -> list["Path"]:
        """The mixed paths of an optimizer step, the same in all its micro-batches and on all ranks."""
        return random.Random(f"{seed} {step}").sample(self.mixed, self.paths)

    def run(
        self, path: "Path", bridged: Sequence[Tensor], maps: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[list[Tensor], Tensor]:
        """The outputs of a path's stages in its second network, and its logits [B, C]."""
        network = self.networks[path.to_teacher]
        at = path.start - 1
        x = bridged[at] if path.to_teacher else through(self.to_student[at], maps[at][1])
        with kept_statistics(network.network):
            outputs = network.onwards(path.start, x, self.last)
            return outputs, network.head(outputs[-1])

    def _not_drawn(self) -> Tensor | float:
        """0, with a zero gradient for the bridges that this step does not use: DDP expects one for each parameter."""
        return sum((0.0 * p.sum() for p in self.to_student.parameters()), 0.0)


@dataclass(frozen=True)
class Path:
    """A mixed path: the first `start` stages of one network, then the remaining stages of the other."""

    start: int
    to_teacher: bool


class Bridge(nn.Module):
    """A 3x3 convolution and batch norm from one network's map to the other's, both (C, H, W).

    A LeakyReLU follows where the stages of the receiving network expect rectified maps. The convolution has stride 2
    for half the size, and is transposed (4x4) for twice the size; other sizes raise ValueError.
    """

    def __init__(self, source: Sequence[int], target: Sequence[int], rectified: bool) -> None:
        super().__init__()
        (width, *size), (wanted, *goal) = source, target
        self.conv: nn.Module
        if size == goal:
            self.conv = nn.Conv2d(width, wanted, 3, padding=1, bias=False)
        elif size == [2 * x for x in goal]:
            self.conv = nn.Conv2d(width, wanted, 3, stride=2, padding=1)
        elif [2 * x for x in size] == goal:
            self.conv = nn.ConvTranspose2d(width, wanted, 4, stride=2, padding=1)
        else:
            raise ValueError(
                f"fcfd: a map of {size} pixels cannot be bridged to one of {goal}: the size must be the same, half or "
                "twice in the other network; choose another pair of networks"
            )
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.bn = nn.BatchNorm2d(wanted)
        self.slope = 0.1 if rectified else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.bn(self.conv(x)), self.slope)


@in_float32
def pooled_squares(x: Tensor, teacher: Tensor) -> Tensor:
    """`mean_squares` of both maps after ReLU and the mean over their pixels: [B]."""
    return (x.relu().mean((2, 3)) - teacher.relu().mean((2, 3))).square().mean(1)
