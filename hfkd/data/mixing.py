"""CutMix and MixUp of given pairs of images, each pair with its own box or share.

B images, H height, W width. torchvision's transforms of these names draw one share and one box a batch from the global
generator, so that a row would depend on the batch it is in; here whoever calls says what each row gets.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Mix = Literal["cutmix", "mixup"]
ALPHAS: dict[str, float] = {"cutmix": 1.0, "mixup": 0.2}  # lambda ~ Beta(alpha, alpha), as HE-DA sets them


def mix_images(mix: Mix, images: Tensor, partners: Tensor, draws: list[np.random.Generator]) -> tuple[Tensor, Tensor]:
    """Each image [B, ..., H, W] mixed with its partner, and the share [B] of the image itself in the result.

    Row b draws lambda, and for CutMix its box, from `draws[b]`. One generator given B times mixes every row anew; a
    batch that shares lambda and box calls `cutmix` or `mixup` with repeated ones.
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
    """CutMix's box (Yun et al., ICCV 2019, Eq. 2): (top, bottom, left, right), centred at a pixel, cut off at the edge.

    Its sides are floor(H sqrt(1 - lambda)) and floor(W sqrt(1 - lambda)) before that.
    """
    side = (1 - share) ** 0.5
    tall, wide = int(height * side), int(width * side)
    top, left = row - tall // 2, column - wide // 2
    return max(top, 0), min(top + tall, height), max(left, 0), min(left + wide, width)


def cutmix(images: Tensor, partners: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Paste each partner's box [B, 4] into the image; the second result is the share [B] of pixels left, exactly."""
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
