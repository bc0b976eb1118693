"""CRD: an image's features in student and teacher are contrasted with those of other images.

B images, D dimensions, K negatives, N training images.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from hfkd.losses.base import Requirements
from hfkd.losses.context import BuildContext
from hfkd.losses.features.maps import in_float32
from hfkd.losses.features.memory_bank import MemoryBank, RowNumbers
from hfkd.losses.features.negatives import Negatives
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import Count, Positive, Share, checked
from hfkd.utils.feature_keys import Layer
from hfkd.utils.targets import IGNORED

EPS = 1e-7


@register_objective("crd")
@checked
class CRD(LayerPairs):
    """Contrastive representation distillation (Tian et al., ICLR 2020).

        l_i = nce(a_i) + nce(b_i),    nce(a) = -log(a_0 / (a_0 + c)) - sum_k log(c / (a_k + c)),    c = K / N
        a_k = exp(M_t[k] . v_s / temperature) / Z_s,    b_k = exp(M_s[k] . v_t / temperature) / Z_t

    v = W x + b, scaled to length 1, is a trained embedding of `dimension` numbers for each network; k = 0 is the image
    itself, the others are K `negatives`. The memory banks M_s, M_t hold the v of every training image and are updated
    by m <- unit(momentum m + (1 - momentum) v) once per optimizer step, with the rows of all ranks. Z is set once, to N
    times the mean of the first batch's exponentials. Given the memory banks, a value depends on its own image only.
    Published weight beside the cross-entropy: 0.8.

    Negatives are images of other classes (`sampling="other_images"`: any other images), drawn with replacement as a
    function of (seed, step, image), on the device and the same for any number of ranks. The released code draws without
    replacement, on the host, and each of its ranks has its own memory banks.
    """

    single = True
    divergence = False

    def __init__(
        self,
        layer: Layer = "pooled",
        teacher_layer: Layer | None = None,
        dimension: Count = 128,
        negatives: Count = 16384,
        temperature: Positive = 0.07,
        momentum: Share = 0.5,
        sampling: Literal["other_classes", "other_images"] = "other_classes",
    ) -> None:
        super().__init__(layer, teacher_layer)
        self.layer, self.teacher_layer, self.dimension, self.negatives = layer, teacher_layer, dimension, negatives
        self.temperature, self.momentum, self.sampling = temperature, momentum, sampling

    def requirements(self) -> Requirements:
        return replace(super().requirements(), rows=True, index=True)

    def build(self, context: BuildContext) -> None:
        super().build(context)
        if context.num_rows is None:
            raise ValueError(
                f"{self!r} keeps a memory of every training row, but train_dataset is a stream of unknown length: "
                "pass a map-style dataset"
            )
        if self.sampling == "other_classes" and context.labels is None:
            raise ValueError(
                f"{self!r}: negatives of other classes need the labels of all rows, which are not available without "
                "reading this data set: use crd(sampling='other_images')"
            )
        if self.sampling == "other_classes" and context.labels is not None and (context.labels == IGNORED).any():
            raise ValueError(
                f"{self!r}: negatives of other classes need a label for every row, but some rows have none (-100): "
                "use crd(sampling='other_images')"
            )
        self.numbers = RowNumbers(context.index)
        ((mine, theirs),) = self.pairs or ()
        self.embed_student = Embedding(context.student.shape(mine), self.dimension)
        self.embed_teacher = Embedding(context.teacher.shape(theirs), self.dimension)
        self.bank = MemoryBank(context.num_rows, self.dimension, self.momentum, context.seed)
        self.sampler = Negatives(context.num_rows, context.labels if self.sampling == "other_classes" else None)

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        if items.index is None:
            raise ValueError(
                f"{self!r} looks up the memory of each row by its number, but the batch has no index: keep the column "
                "'index' in the collator and the transform"
            )
        ((student, teacher),) = self.read(items)
        v_s, v_t = self.embed_student(student), self.embed_teacher(teacher)  # [B, D]
        self.bank.arrive(items.step, v_s.device)
        own = self.numbers(items.index)  # [B]
        others = self.sampler(items.seed, items.step, own, self.negatives)
        rows = torch.cat([own.unsqueeze(1), others], 1)  # [B, 1 + K]
        losses = []
        for v, memory, name in ((v_s, self.bank.teacher, "student"), (v_t, self.bank.student, "teacher")):
            scores = exponentials(v, memory, rows, self.temperature)
            losses.append(contrast(scores / self.bank.normalizer(name, scores), self.negatives / len(memory)))
        if self.training and torch.is_grad_enabled():
            self.bank.remember(own, v_s, v_t)
        return losses[0] + losses[1]


class Embedding(nn.Module):
    """x -> (W x + b) / ||W x + b||: features of any shape -> [B, D], in float32 or wider."""

    def __init__(self, shape: tuple[int, ...], dimension: int) -> None:
        super().__init__()
        self.linear = nn.Linear(int(torch.Size(shape).numel()), dimension)

    def forward(self, x: Tensor) -> Tensor:
        return _embedded(x.flatten(1), self.linear.weight, self.linear.bias)


@in_float32
def _embedded(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    v = nn.functional.linear(x, weight, bias)
    return v / v.norm(dim=-1, keepdim=True)


@in_float32
def exponentials(v: Tensor, memory: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """exp(M[rows] . v / temperature): v [B, D], memory [N, D], rows [B, 1 + K] -> [B, 1 + K].

    The product with the whole memory, [B, N], is smaller than the K rows of each image, [B, K, D].
    """
    return (v @ memory.to(v.dtype).T / temperature).gather(1, rows).exp()


@in_float32
def contrast(scores: Tensor, noise: float) -> Tensor:
    """-log(a_0 / (a_0 + c)) - sum_k log(c / (a_k + c)) of each image: [B, 1 + K] -> [B]; as released, a + c + 1e-7."""
    own, others = scores[:, 0], scores[:, 1:]
    return (own + noise + EPS).log() - own.log() + ((others + noise + EPS) / noise).log().sum(-1)
