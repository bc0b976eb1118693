"""Freezes networks of the caller while they teach, and restores their state afterwards."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hfkd.utils.memory_format import lay_out, of_images


class Freezing:
    """Eval mode and no gradients for `networks`, with `channels_last` also that memory format, until `undo`.

    The training mode, `requires_grad` and memory format of each module and parameter are then restored.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks, self.channels_last, self.done = tuple(networks), False, False
        self._modes: list[list[tuple[nn.Module, bool]]] = []
        self._learning: list[nn.Parameter] = []
        self._contiguous: list[Tensor] = []

    @torch.compiler.disable
    def do(self) -> None:
        if self.done:
            return
        self.done = True
        self._modes = [[(module, module.training) for module in network.modules()] for network in self.networks]
        parameters = [parameter for network in self.networks for parameter in network.parameters()]
        self._learning = [parameter for parameter in parameters if parameter.requires_grad]
        for network in self.networks:
            network.eval()
        for parameter in self._learning:  # one by one: TorchScript's modules have no requires_grad_
            parameter.requires_grad_(False)
        if self.channels_last:
            images = of_images(self.networks)
            self._contiguous = [tensor for tensor in images if tensor.is_contiguous()]
            lay_out(images, torch.channels_last)

    @torch.compiler.disable
    def undo(self) -> None:
        if not self.done:
            return
        self.done = False
        for (network, mode), *others in self._modes:
            network.train(mode)  # overridden methods may do more than set modes
            for module, its_mode in others:
                module.training = its_mode
        for parameter in self._learning:
            parameter.requires_grad_(True)
        lay_out(self._contiguous, torch.contiguous_format)
        self._modes, self._learning, self._contiguous = [], [], []
