"""Networks whose stages an objective runs itself, from a feature to the logits.

B images, C classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hfkd.losses.context import NetworkContext


class RunningStages:
    """Stages 1..n of a network that has `stage(k, x)`, `tail(x)` and `forward_head(x)`, as hfkd's CIFAR networks have.

    Raises ValueError for any other network. The network's own hooks and its wrappers see nothing of these runs.
    """

    def __init__(self, objective: str, name: str, context: NetworkContext) -> None:
        self.network: Any = getattr(context.network, "timm_model", context.network)  # of transformers' wrapper
        self.class_order = None if context.class_order is None else list(context.class_order)
        if not all(callable(getattr(self.network, method, None)) for method in ("stage", "tail", "forward_head")):
            raise ValueError(
                f"{objective} runs the stages of the {name} one by one, and {type(context.network).__name__} has no "
                "stage(k, x), tail(x) and forward_head(x): use one of the CIFAR networks (timm.list_models('cifar_*'))"
            )

    def onwards(self, k: int, x: Tensor, last: int) -> list[Tensor]:
        """What the stages k + 1 to `last` make of x, the output of stage k; of images with k = -1."""
        x, outputs = x.to(next(self.network.parameters()).dtype), []
        for index in range(k + 1, last + 1):
            x = self.network.stage(index, x)
            outputs.append(x)
        return outputs

    def to_the_end(self, k: int, x: Tensor) -> Tensor:
        """The logits [B, C] of x, the output of stage k."""
        outputs = self.onwards(k, x, len(self.network.feature_info) - 1)
        return self.head(outputs[-1] if outputs else x)

    def head(self, x: Tensor) -> Tensor:
        """The logits [B, C] of the last stage's output, in the data's order of classes."""
        logits = self.network.forward_head(self.network.tail(x))
        return logits if self.class_order is None else logits[:, self.class_order]

    @torch.no_grad()
    def gives_rectified(self, k: int, shape: tuple[int, ...]) -> bool:
        """Whether stage k, whose input has this `shape`, ends with a ReLU: tried on random maps."""
        example = next(self.network.parameters())
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, *shape, generator=generator).to(example.device, example.dtype)
        training = self.network.training
        with kept_statistics(self.network):
            least = self.network.train(False).stage(k, x).min()
        self.network.train(training)
        return bool(least >= 0)


@contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Within it batch norms in training mode use the batch's statistics, and their running ones stay as they are."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
