"""The images of the evaluation set that a page shows."""

import torch
from torch import Tensor

from hfkd.models import InputSpec


def spread(rows: int, count: int) -> list[int]:
    """`count` evenly spaced row numbers; all rows if there are fewer."""
    return [k * rows // count for k in range(count)] if rows > count else list(range(rows))


def example_name(place: int) -> str:
    return f"Image {place} of the evaluation set"


def picture(pixels: Tensor, spec: InputSpec | None) -> Tensor:
    """The image [3, H, W] before normalisation, as uint8 [H, W, 3]."""
    mean, std = ((0.0,), (1.0,)) if spec is None else (spec.mean, spec.std)
    plain = pixels.float().cpu() * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    return (255 * plain.clamp(0, 1)).round().to(torch.uint8).movedim(0, -1)
