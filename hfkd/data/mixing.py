"""CutMix and MixUp of given pairs of images, with a separate box or share for each pair.

B images, H height, W width. torchvision's transforms of these names draw one share and one box per batch from the
global generator, so that a row would depend on its batch; here the caller passes a generator for each row.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Mix = Literal["cutmix", "mixup"]
ALPHAS: dict[str, float] = {"cutmix": 1.0, "mixup": 0.2}  # lambda ~ Beta(alpha, alpha), as in HE-DA


def mix_images(mix: Mix, images: Tensor, partners: Tensor, draws: list[np.random.Generator]) -> tuple[Tensor, Tensor]:
    """Mix each image [B, ..., H, W] with its partner; also returns the share [B] of the image in the result.

    Row b draws lambda, and for CutMix its box, from `draws[b]`; the same generator may be passed for all rows. For a
    common lambda and box, call `cutmix` or `mixup` with repeated values.
    """
    alpha = ALPHAS[mix]
    shares = [float(draw.beta(alpha, alpha)) for draw in draws]
    if mix == "mixup":
        own = torch.tensor(shares, dtype=images.dtype, device=images.device)
        return mixup(images, partners, own), own
    height, width = images.shape[-2:]
    boxes = [
        box(share, int(d.integers(height)), int(d.integers(width)), height, width)
        for share, d in zip(shares, draws, strict=True)
    ]
    return cutmix(images, partners, torch.tensor(boxes, device=images.device))


def box(share: float, row: int, column: int, height: int, width: int) -> tuple[int, int, int, int]:
    """CutMix's box (Yun et al., ICCV 2019, Eq. 2): (top, bottom, left, right) around a pixel, clipped at the edges.

    Its sides before clipping are floor(H sqrt(1 - lambda)) and floor(W sqrt(1 - lambda)).
    """
    side = (1 - share) ** 0.5
    tall, wide = int(height * side), int(width * side)
    top, left = row - tall // 2, column - wide // 2
    return max(top, 0), min(top + tall, height), max(left, 0), min(left + wide, width)


def cutmix(images: Tensor, partners: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Paste each partner's box [B, 4] into the image; also returns the exact share [B] of the remaining pixels."""
    height, width = images.shape[-2:]
    top, bottom, left, right = boxes[:, :, None].unbind(1)  # [B, 1] each
    rows, columns = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
    pasted = inside.view(len(images), *[1] * (images.ndim - 3), height, width)
    area = ((bottom - top) * (right - left)).squeeze(-1)
    return torch.where(pasted, partners, images), 1 - area.to(images.dtype) / (height * width)


def mixup(images: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    """lambda x + (1 - lambda) x' (Zhang et al., ICLR 2018), lambda [B]."""
    own = shares.view(-1, *[1] * (images.ndim - 1))
    return own * images + (1 - own) * partners
