"""The strong augmentation of multi-level logit distillation: RandAugment and Cutout on cropped and flipped images.

B images, H height, W width.
"""

import torch
from torch import Tensor
from torchvision.transforms import v2

LEVELS = 31  # RandAugment's magnitudes
CUTOUT_COLOUR = (125, 123, 114)  # CIFAR-100's mean, as in MLD's released code


def strong_views(images: Tensor, seeds: Tensor) -> Tensor:
    """RandAugment with two operations and a random magnitude per image, then Cutout. [B, 3, H, W] uint8 both.

    As in MLD's released code (Jin et al., CVPR 2023), the magnitude is uniform over its range, and the side of the
    erased square is U(0, 0.5) of the image's height, around a uniform centre. The result is a function of the image and
    its seed [B]. The operations are torchvision's fourteen, whose ranges differ slightly from those of the released
    code.
    """
    with torch.random.fork_rng(devices=[]):
        return torch.stack([_strong(image, int(seed)) for image, seed in zip(images, seeds, strict=True)])


def _strong(image: Tensor, seed: int) -> Tensor:
    torch.default_generator.manual_seed(seed)
    magnitude = int(torch.randint(LEVELS, ()))
    return cutout(v2.RandAugment(2, magnitude, LEVELS)(image))


def cutout(image: Tensor) -> Tensor:
    """Erase a square with a side of U(0, 0.5) of the height around a uniform centre, clipped at the edges."""
    _, height, width = image.shape
    size, y, x = (torch.rand(3) * torch.tensor([height / 2, height, width])).tolist()
    top, left = max(int(y - size / 2), 0), max(int(x - size / 2), 0)
    bottom, right = min(int(y + size / 2), height), min(int(x + size / 2), width)
    colour = torch.tensor(CUTOUT_COLOUR, dtype=image.dtype).view(3, 1, 1)
    return v2.functional.erase(image, top, left, bottom - top, right - left, colour)
