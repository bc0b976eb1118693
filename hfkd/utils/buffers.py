"""A copy of a network's buffers (such as batch norm's running statistics) as of the last good step."""

import torch
from torch import Tensor, nn


class KeptBuffers:
    """A copy of a network's buffers on their devices. Copies in both directions are asynchronous."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def keep(self, network: nn.Module) -> None:
        buffers = dict(network.named_buffers())
        if {n: b.shape for n, b in buffers.items()} != {n: b.shape for n, b in self._kept.items()}:
            self._kept = {name: buffer.clone() for name, buffer in buffers.items()}
        elif buffers:
            torch._foreach_copy_([self._kept[name] for name in buffers], list(buffers.values()))

    @torch.no_grad()
    def restore(self, network: nn.Module) -> None:
        """Undo changes to the buffers since `keep`. Buffers that were created since then are not changed."""
        for name, buffer in network.named_buffers():
            if name in self._kept:
                buffer.copy_(self._kept[name])
