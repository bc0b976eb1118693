"""Running the remaining stages of a network from a feature to the logits.

B images, C classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hfkd.losses.context import NetworkContext
from hfkd.utils.modes import in_eval_mode


class RunningStages:
    """Stages 1..n of a network whose stages can be run one by one (`NetworkContext.stages`).

    Raises ValueError for any other network. Hooks on the whole network, and its wrappers, are not called by these runs.
    """

    def __init__(self, objective: str, name: str, context: NetworkContext) -> None:
        self.network = context.network
        self.class_order = None if context.class_order is None else list(context.class_order)
        if context.stages is None:
            raise ValueError(
                f"{objective} runs the stages of the {name} one by one, but those of {type(context.network).__name__} "
                "are not known as a sequence: use one of the CIFAR networks (timm.list_models('cifar_*')), a ResNet "
                "of timm or torchvision, or an EfficientNet or MobileNet of timm"
            )
        self.stages = context.stages

    def onwards(self, k: int, x: Tensor, last: int) -> list[Tensor]:
        """The outputs of the stages k + 1 to `last`, from the output x of stage k (from images with k = -1)."""
        x, outputs = x.to(next(self.network.parameters()).dtype), []
        for stage in self.stages.stages[k + 1 : last + 1]:
            x = stage(x)
            outputs.append(x)
        return outputs

    def to_the_end(self, k: int, x: Tensor) -> Tensor:
        """The logits [B, C] from the output x of stage k."""
        outputs = self.onwards(k, x, self.stages.last)
        return self.head(outputs[-1] if outputs else x)

    def head(self, x: Tensor) -> Tensor:
        """The logits [B, C] from the last stage's output, in the data's order of classes."""
        logits = self.stages.head(x)
        return logits if self.class_order is None else logits[:, self.class_order]

    @torch.no_grad()
    def gives_rectified(self, k: int, shape: tuple[int, ...]) -> bool:
        """Whether stage k, whose input has this `shape`, ends with a ReLU: tried on random maps."""
        example = next(self.network.parameters())
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, *shape, generator=generator).to(example.device, example.dtype)
        with in_eval_mode(self.network):
            least = self.stages.stages[k](x).min()
        return bool(least >= 0)


@contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Keep batch norms in training mode from updating their running statistics within the context."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
