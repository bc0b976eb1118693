"""Utilities for formulas on features: computation in float32, and pooling of maps to the same size.

B images, C channels, H and W pixels.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfkd.losses.functional import upcast


def in_float32(formula: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a formula so that its floating-point tensors are float32 or wider, also under autocast to bfloat16.

    Distances, Gram matrices and normalisations lose precision in half precision. The convolutions of connectors are not
    decorated.
    """

    @functools.wraps(formula)
    def computed(*arguments: Any, **keywords: Any) -> Any:
        device = next(x.device.type for x in arguments if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return formula(*map(_upcast, arguments), **keywords)

    return computed


def _upcast(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_upcast, value))
    return upcast(value) if isinstance(value, Tensor) else value


def through(connector: nn.Module, x: Tensor) -> Tensor:
    """A connector's output for a feature, which is first cast to the dtype of the connector's parameters."""
    return connector(x.to(next((p.dtype for p in connector.parameters()), x.dtype)))


def shrunk_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller height and the smaller width of the two, by adaptive average pooling."""
    height, width = (min(a, b) for a, b in zip(student.shape[-2:], teacher.shape[-2:], strict=True))
    return resized(student, height, width), resized(teacher, height, width)


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """The map at this size, by adaptive average pooling; unchanged if it has the size already."""
    return x if x.shape[-2:] == (height, width) else F.adaptive_avg_pool2d(x, (height, width))


@in_float32
def mean_squares(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of (s - t)^2 over all features of each image: [B, ...] twice -> [B]."""
    return (student - teacher).square().flatten(1).mean(1)


def unit(x: Tensor) -> Tensor:
    """x / max(||x||, 1e-12); a zero vector stays zero and gets no gradient (which would be 1e12 times too large)."""
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > 1e-12, x / norm.clamp(min=1e-12), torch.zeros_like(x))
