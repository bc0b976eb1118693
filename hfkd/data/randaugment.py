"""The strong view of multi-level logit distillation: RandAugment and Cutout on images that are cropped and flipped.

B images, H height, W width.
"""

import torch
from torch import Tensor
from torchvision.transforms import v2

LEVELS = 31  # RandAugment's magnitudes
CUTOUT_COLOUR = (125, 123, 114)  # CIFAR-100's mean, as MLD released it


def strong_views(images: Tensor, seeds: Tensor) -> Tensor:
    """RandAugment with two operations, each image at a magnitude of its own, then Cutout. [B, 3, H, W] uint8 both.

    As MLD's release (Jin et al., CVPR 2023) does: the magnitude is uniform over its range, and the cut a square of
    U(0, 0.5) of the image's height around a uniform centre. What an image gets depends on its seed [B] alone. The
    operations are torchvision's fourteen, whose ranges differ a little from the release's.
    """
    with torch.random.fork_rng(devices=[]):
        return torch.stack([_strong(image, int(seed)) for image, seed in zip(images, seeds, strict=True)])


def _strong(image: Tensor, seed: int) -> Tensor:
    torch.default_generator.manual_seed(seed)
    magnitude = int(torch.randint(LEVELS, ()))
    return cutout(v2.RandAugment(2, magnitude, LEVELS)(image))


def cutout(image: Tensor) -> Tensor:
    """A square of U(0, 0.5) of the height, around a uniform centre, in the mean colour; it may reach over the edge."""
    _, height, width = image.shape
    size, y, x = (torch.rand(3) * torch.tensor([height / 2, height, width])).tolist()
    top, left = max(int(y - size / 2), 0), max(int(x - size / 2), 0)
    bottom, right = min(int(y + size / 2), height), min(int(x + size / 2), width)
    colour = torch.tensor(CUTOUT_COLOUR, dtype=image.dtype).view(3, 1, 1)
    return v2.functional.erase(image, top, left, bottom - top, right - left, colour)
