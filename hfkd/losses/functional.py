"""Functions of logits: energy, entropy, standardisation and interpolation; and sums over many items.

N items, C classes (or vocabulary entries).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hfkd.utils.devices import widest_float


def upcast(logits: Tensor) -> Tensor:
    """Cast bf16 and fp16 to float32, and keep wider dtypes: softmax statistics in half precision lose the tail."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def interpolated(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps [..., C, h, w] of logits, resized to `size` (height, width) as in transformers and torchvision.

    Bilinear, corners not aligned; maps of that size are only cast. Returns float32 or wider.
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return upcast(maps)
    flat = upcast(maps).flatten(0, -4)  # [B, C, h, w]
    resized = F.interpolate(flat, size=tuple(size), mode="bilinear", align_corners=False)
    return resized.view(*maps.shape[:-2], *size)


def standardize(logits: Tensor) -> Tensor:
    """z -> (z - mean z) / (std z + 1e-7) of each item, std unbiased  (logit standardisation, Sun et al., CVPR 2024)."""
    z = upcast(logits)
    return (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 1e-7)


def energy(logits: Tensor, temperature: float = 4.0) -> Tensor:
    """Energy score E_n = -T_E logsumexp_c(z_nc / T_E)  (Energy KD, Eq. 4; Liu et al., NeurIPS 2020).

    Low energy = a confident teacher. The Energy KD paper does not state T_E; its released code uses 4.
    [N, C] -> [N], in the unit of the logits.
    """
    return -temperature * torch.logsumexp(upcast(logits) / temperature, dim=-1)


def entropy(logits: Tensor, temperature: float = 3.0) -> Tensor:
    """Shannon entropy H_n = -sum_c p_nc log p_nc of p = softmax(z / T')  (EA-KD, Eq. 2-3, T' = 3).

    [N, C] -> [N], in nats, within [0, log C]. A class of probability 0 contributes 0, also with a logit of -inf.
    """
    log_p = torch.log_softmax(upcast(logits) / temperature, dim=-1)
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)


def sums_by(group: Tensor, count: int, values: Tensor) -> Tensor:
    """[N, ...] -> [count, ...]: the sums over the items of each group, in float64 where the device has it.

    A sum in float32 loses what is small beside it: a hundredth of the mean loss of three million pixels, and every item
    of a row after the first 16,777,216.
    """
    wide = values.to(widest_float(values.device))
    return wide.new_zeros(count, *values.shape[1:]).index_add(0, group, wide)
