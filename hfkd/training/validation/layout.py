"""Detects networks that must not be in channels_last: torch computes some of their gradients wrongly there."""

import logging

import torch
from torch import nn

from hfkd.arguments import DistillationArguments

logger = logging.getLogger(__name__)


def lays_out(student: nn.Module, args: DistillationArguments) -> bool:
    """Whether to use channels_last for networks and images. If it is not safe, it is not used, with a warning.

    Nor is it on Apple's GPUs (MPS): the backward pass of batch norms ends in an error there before PyTorch's pull
    request 188371, of June 2026.
    """
    if args.device.type == "mps":
        return False
    name = _unsafe_convolution(student, args)
    if name is not None:
        logger.warning(
            "channels_last is not used: %s is a 1 x 1 convolution with a stride and few channels, whose gradient "
            "torch computes wrongly in channels_last on a CPU.",
            name,
        )
    return args.channels_last and name is None


def refuse_unsafe_parts(loss: nn.Module, args: DistillationArguments) -> None:
    """Raise ValueError for such a convolution in the loss: its inputs have the student's memory format."""
    name = _unsafe_convolution(loss, args)
    if name is not None:
        raise ValueError(
            f"{name}, a part of the loss, is a 1 x 1 convolution with a stride and few channels: on a CPU torch "
            "computes its gradient wrongly in channels_last; pass channels_last=False"
        )


def _unsafe_convolution(module: nn.Module, args: DistillationArguments) -> str | None:
    """Name of a convolution whose weight gradient is written outside of its memory; most runs crash, some go on
    wrongly.

    Affected are 1 x 1 convolutions with a stride and fewer input channels than the CPU's vectors have elements. Seen in
    torch 2.13 and 2.15 on AVX2, and open in oneDNN (its issue 6035), so that no version is known to be free of it. A
    single input channel, and as many as a vector has elements or more, were never affected.
    """
    if not args.channels_last or args.device.type != "cpu":
        return None
    vector = 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8  # of float32
    for name, part in module.named_modules():
        strided = isinstance(part, nn.Conv2d) and set(part.kernel_size) == {1} and max(part.stride) > 1
        if strided and 1 < part.in_channels < vector:
            return name
    return None
