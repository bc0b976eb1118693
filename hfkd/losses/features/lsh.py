"""LSH: on which side of random hyperplanes a feature lies.

B images, D features, N hash functions.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hfkd.losses.features.maps import in_float32


@in_float32
def hash_difference(
    student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor, distance: Literal["bce", "l2", "l1"] = "bce"
) -> Tensor:
    """How the hash values h(x) = W x + b of student and teacher [B, D] differ, the mean over the N functions: [B].

    bce: the cross-entropy of sigmoid(h(s)) with [h(t) > 0]; l2 and l1: (h(s) - h(t))^2 and |h(s) - h(t)|.
    """
    s, t = (F.linear(x, weight.to(x.dtype), bias.to(x.dtype)) for x in (student, teacher))
    if distance == "bce":
        return F.binary_cross_entropy_with_logits(s, (t > 0).to(s.dtype), reduction="none").mean(-1)
    return ((s - t).square() if distance == "l2" else (s - t).abs()).mean(-1)


@in_float32
def mean_squared(student: Tensor, teacher: Tensor) -> Tensor:
    """mean_d (s_d - t_d)^2 of each image: [B, D] twice -> [B]."""
    return (student - teacher).square().mean(-1)


def lower_median(values: Tensor) -> Tensor:
    """The middle value of each column [rows, N], of two the lower: [N]."""
    return torch.median(values, dim=0).values
