"""Small tensors for a device, without the host waiting for its queue to empty, as `.to` and `torch.tensor` do."""

from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor


class OnHost:
    """A part of a batch that stays where the host can read it, when a loader sends the batch to a device."""

    def to(self, *args: Any, **keywords: Any) -> Self:
        return self


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU, which nobody writes to any more, on `device`; one that is there already itself."""
    if tensor.device.type == device.type:
        return tensor
    if torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers [N] float32 that are sent once, for all who ask for the same ones."""
    if torch.compiler.is_compiling():  # a compiler writes them into its code
        return torch.stack([torch.full((), value, device=device) for value in values])
    return _sent(values, device)


@lru_cache
def _sent(values: tuple[float, ...], device: torch.device) -> Tensor:
    return send(torch.tensor(values), device)
