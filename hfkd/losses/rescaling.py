"""What a language model does to the logits of its output head: scale them (Cohere, Granite), cap them (Gemma)."""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALL = 2.0**-14  # where a cap does not bend yet; a power of two, by which division is exact
LARGE = 1e30  # where only the cap is left


@dataclass(frozen=True)
class Rescaling:
    """z -> scale z, or where there is a cap  z -> cap tanh(scale z / cap), of each logit z."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Of the same shape; `logits` itself where nothing is done to them."""
        scaled = logits if self.scale == 1 else logits * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)

    @classmethod
    def fitted(cls, logits: Tensor, given: Tensor) -> "Rescaling | None":
        """The one that makes `given` of the logits of `all_sizes`; None if there is none."""
        small, large = given.flatten()[:2].tolist()
        found = cls(small / SMALL, large if abs(large) < LARGE * SMALL else None)
        return found if torch.allclose(found(logits), given.to(logits), rtol=1e-5, atol=0.0) else None


def all_sizes(like: Tensor) -> Tensor:
    """Numbers of either sign from 1e-3 to 1e3, the first two SMALL and LARGE; in float64, for the scale's digits."""
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    numbers = torch.logspace(-3, 3, like.numel(), device=like.device, dtype=dtype)
    numbers[::2] *= -1
    numbers[:2] = numbers.new_tensor([SMALL, LARGE])
    return numbers.view(like.shape)
