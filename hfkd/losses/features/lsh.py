"""LSH: the side of random hyperplanes on which a feature lies.

B images, D features, N hash functions.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hfkd.losses.base import Requirements
from hfkd.losses.context import BuildContext
from hfkd.losses.features.classifier import linear_classifier
from hfkd.losses.features.maps import in_float32, mean_squares
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import Count, Positive, checked
from hfkd.utils.feature_keys import Layer

FUNCTIONS_AT_ONCE = 256  # functions whose medians over the training rows are computed together
MOST_ROWS = 100_000  # whose features are kept for the medians; those of ImageNet would take 10 GB on each rank


@register_objective("lsh")
@checked
class LSH(LayerPairs):
    """Mimicking features by locality-sensitive hashing (Wang, Ge and Wu, TPAMI 2021).

        l_s = mean_d (s - t)^2 + mean_n BCE(h_n(s), [h_n(t) > 0]),    h(x) = W x + b

    s is the input of the student's classifier, of the same width as the teacher's t: `hfkd.models.with_projector` adds
    a linear layer of that width to a student, which is saved with it. W [`functions`, D] ~ N(0, `std`) and b are
    frozen; b is minus the lower median of W t over the training rows (one pass of the teacher; of more than
    100,000 rows, every second, third, ... one), or 0 with bias="zero".
    By default there are 32 D functions, and `std` is that of the teacher's classifier weight.

    `correct_only`, the authors' default ("lshl2_s"), counts only the images that the teacher classifies correctly and
    divides by their number in the batch, so that an image's value depends on the batch. `squared=False` leaves out the
    first term ("lsh"); `distance="l2"` or "l1" compares the hash values themselves. Published weight beside the
    cross-entropy on CIFAR-100: 6. "LSH-TL" in the tables of Energy KD is probably this method; no public source
    confirms it, or names the variant.
    """

    single = True

    def __init__(
        self,
        layer: Layer = "pooled",
        teacher_layer: Layer | None = None,
        functions: Count | None = None,
        std: Positive | None = None,
        bias: Literal["median", "zero"] = "median",
        distance: Literal["bce", "l2", "l1"] = "bce",
        squared: bool = True,
        correct_only: bool = True,
    ) -> None:
        super().__init__(layer, teacher_layer)
        self.layer, self.teacher_layer, self.functions, self.std = layer, teacher_layer, functions, std
        self.bias, self.distance, self.squared, self.correct_only = bias, distance, squared, correct_only

    def requirements(self) -> Requirements:
        plain, scanned = super().requirements(), self.bias == "median"
        return replace(plain, labels=self.correct_only, signals=not self.correct_only, rows=scanned)

    def build(self, context: BuildContext) -> None:
        super().build(context)
        ((mine, theirs),) = self.pairs or ()
        student, teacher = context.student.shape(mine), context.teacher.shape(theirs)
        if len(student) != 1 or student != teacher:
            raise ValueError(
                f"{self!r}: the student's {mine!r} has the shape {student} and the teacher's {theirs!r} {teacher}, "
                "but both are hashed by the same functions: give the student the teacher's width by "
                "hfkd.models.with_projector"
            )
        std = self.std
        if std is None:
            std = float(linear_classifier("lsh", "teacher", context.teacher).weight.detach().float().std())
        generator = torch.Generator().manual_seed(context.seed)
        weight = std * torch.randn(self.functions or 32 * teacher[0], teacher[0], generator=generator)
        self.register_buffer("hash_weight", weight, persistent=False)
        bias = -_medians(context, theirs, weight) if self.bias == "median" else torch.zeros(len(weight))
        self.register_buffer("hash_bias", bias, persistent=False)

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        ((student, teacher),) = self.read(items)
        weight, bias = (getattr(self, name).to(student.device) for name in ("hash_weight", "hash_bias"))
        values = hash_difference(student, teacher, weight, bias, self.distance)
        if self.squared:
            values = values + mean_squares(student, teacher)
        if not self.correct_only:
            return values
        assert items.labels is not None
        labels = items.labels.argmax(-1) if items.labels.is_floating_point() else items.labels
        right = (items.teacher.logits.argmax(-1) == labels).to(values.dtype)
        return values * right * (len(right) / right.sum().clamp(min=1))


@torch.no_grad()
def _medians(context: BuildContext, key: str, weight: Tensor) -> Tensor:
    """The lower median of W t over the training rows, of many over evenly spread ones: [N, D] -> [N], on the CPU."""
    rows: list[Tensor] = []
    step, seen = -(-(context.num_rows or 1) // MOST_ROWS), 0

    def visit(teacher: Any) -> None:
        nonlocal seen
        features = teacher.features[key].detach()
        rows.append(features[-seen % step :: step].float().cpu().clone())
        seen += len(features)

    context.scan(visit)
    features = torch.cat(rows)
    parts = weight.split(FUNCTIONS_AT_ONCE)
    return torch.cat([lower_median(features @ part.T) for part in parts])


@in_float32
def hash_difference(
    student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor, distance: Literal["bce", "l2", "l1"] = "bce"
) -> Tensor:
    """The difference of the hash values h(x) = W x + b of student and teacher [B, D], averaged over N functions: [B].

    bce: the cross-entropy of sigmoid(h(s)) with [h(t) > 0]; l2 and l1: (h(s) - h(t))^2 and |h(s) - h(t)|.
    """
    s, t = (F.linear(x, weight.to(x.dtype), bias.to(x.dtype)) for x in (student, teacher))
    if distance == "bce":
        return F.binary_cross_entropy_with_logits(s, (t > 0).to(s.dtype), reduction="none").mean(-1)
    return ((s - t).square() if distance == "l2" else (s - t).abs()).mean(-1)


def lower_median(values: Tensor) -> Tensor:
    """The median of each column [rows, N], the lower of two middle values: [N]."""
    return torch.median(values, dim=0).values
