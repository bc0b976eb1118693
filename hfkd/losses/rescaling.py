"""How a language model rescales the logits of its output head: by a factor (Cohere, Granite) or a soft cap (Gemma)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfkd.utils.devices import widest_float

SMALL = 2.0**-14  # where a soft cap is still linear; a power of two, so that the division by it is exact
LARGE = 1e30  # where a soft cap has reached its limit


@dataclass(frozen=True)
class Rescaling:
    """z -> scale z, or with a cap z -> cap tanh(scale z / cap), for each logit z."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """The rescaled logits, of the same shape; `logits` itself if there is no rescaling."""
        scaled = logits if self.scale == 1 else logits * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)

    @classmethod
    def fitted(cls, logits: Tensor, given: Tensor) -> "Rescaling | None":
        """The rescaling that turns `logits`, made by `all_sizes`, into `given`; None if there is none."""
        small, large = given.flatten()[:2].tolist()
        found = cls(small / SMALL, large if abs(large) < LARGE * SMALL else None)
        return found if torch.allclose(found(logits), given.to(logits), rtol=1e-5, atol=0.0) else None


def all_sizes(like: Tensor) -> Tensor:
    """Numbers of both signs from 1e-3 to 1e3, the first two SMALL and LARGE; in float64 if the device supports it."""
    numbers = torch.logspace(-3, 3, like.numel(), device=like.device, dtype=widest_float(like.device))
    numbers[::2] *= -1
    numbers[:2] = numbers.new_tensor([SMALL, LARGE])
    return numbers.view(like.shape)
