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
    """The device of a network's first parameters, on which it takes its inputs; the CPU for a network without any.

    If Accelerate loads them when their layer runs (`device_map="auto"`), it is the device on which that computes.
    """
    parameter = next(network.parameters(), None)
    if parameter is None:
        return torch.device("cpu")
    hooks = (getattr(module, "_hf_hook", None) for module in network.modules()) if parameter.is_meta else ()
    loaded = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((device for device in loaded if device is not None), parameter.device))


def is_spread(network: nn.Module) -> bool:
    """Whether Accelerate runs parts of a network on several devices, or loads them when they run (`device_map`)."""
    maps = (getattr(module, "hf_device_map", None) or {} for module in network.modules())
    return any(len({*one.values()}) > 1 or "disk" in one.values() for one in maps)


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
