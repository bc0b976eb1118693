"""The memory format of networks' convolutions."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def of_images(networks: Iterable[nn.Module]) -> list[Tensor]:
    """The parameters and buffers that a memory format of images applies to: those with four dimensions.

    Not the weights of convolutions in three dimensions (Qwen-VL), which torch refuses to convert.
    """
    return [tensor for one in networks for tensor in (*one.parameters(), *one.buffers()) if tensor.ndim == 4]


def lay_out(tensors: Iterable[Tensor], memory_format: torch.memory_format) -> None:
    """Convert the memory format of parameters and buffers in place."""
    for tensor in tensors:
        tensor.data = tensor.data.contiguous(memory_format=memory_format)
