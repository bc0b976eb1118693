"""Devices: of a network, what they compute in, and transfer of small tensors without a synchronisation."""

from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor, nn


class OnHost:
    """A part of a batch that stays on the CPU when a loader moves the batch to a device."""

    def to(self, *args: Any, **keywords: Any) -> Self:
        return self


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's parameters; the CPU for a network without any."""
    parameter = next(network.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor, which must not be changed afterwards, on `device`; a tensor on the device is returned unchanged.

    Only CUDA keeps the source until the copy has been made: on Apple's GPUs (MPS) it may be overwritten before
    (PyTorch's issue 189690).
    """
    if tensor.device.type == device.type:
        return tensor
    if torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def widest_float(device: torch.device) -> torch.dtype:
    """float64; float32 on Apple's GPUs (MPS), which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A tensor [N] float32 of these numbers on `device`, cached for all calls with the same numbers."""
    if torch.compiler.is_compiling():  # the compiler makes them constants
        return torch.stack([torch.full((), value, device=device) for value in values])
    return _sent(values, device)


@lru_cache
def _sent(values: tuple[float, ...], device: torch.device) -> Tensor:
    return send(torch.tensor(values), device)
