"""A temperature that is trained adversarially to the student: CTKD.

N items, C classes.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from hfkd.losses.base import Requirements, Temperature
from hfkd.losses.functional import upcast
from hfkd.losses.items import Items, epoch_of
from hfkd.losses.registry import register_temperature
from hfkd.utils.argument_types import Count, NotNegative, Positive, SoftmaxTemperature, checked, fitting


@register_temperature("learned")
@checked
class Learned(nn.Module, Temperature):
    """CTKD (Li et al., AAAI 2023): T = start + span sigmoid(theta), theta trained to make distilling harder.

    There is one theta for all items, initially 1 (T = 15.6), or with `instance=True` one per item, from an MLP with
    `width` hidden units on the detached logits of both networks. The gradient of theta is multiplied by

        lambda(e) = (cos(pi min(e, E) / E) + 1) / 2 - 1,   E = warmup_epochs, e = 1 in the first epoch

    which reverses it, growing from nearly 0 to -1 (`warmup_epochs=0`: -1 from the start). T lies in (start, start +
    span). theta is trained by the student's optimizer, with its weight decay, which pulls T towards start + span / 2,
    as in the released code. The authors' instance-wise code is not public; the shape of the MLP is a choice of hfkd.
    """

    def __init__(
        self,
        instance: bool = False,
        start: SoftmaxTemperature = 1.0,
        span: Positive = 20.0,
        warmup_epochs: NotNegative = 10,
        width: Count = 64,
    ) -> None:
        super().__init__()
        fitting("Learned", "start + span", start + span, SoftmaxTemperature)
        self.instance, self.start, self.span = instance, start, span
        self.warmup_epochs, self.width = warmup_epochs, width
        if instance:
            self.theta: Any = nn.Sequential(nn.LazyLinear(width), nn.ReLU(), nn.Linear(width, 1))
        else:
            self.theta = nn.Parameter(torch.ones(()))

    def requirements(self) -> Requirements:
        return Requirements(epochs=self.warmup_epochs, signals=not self.instance)

    def forward(self, items: Items) -> Tensor:
        theta = _Scaled.apply(self._theta(items), self.reversal(items.progress))
        return (self.start + self.span * torch.sigmoid(theta)).expand(len(items))

    def _theta(self, items: Items) -> Tensor:
        if not self.instance:
            return self.theta
        logits = [upcast(outputs.logits.detach()) for outputs in (items.teacher, items.student)]
        return self.theta(torch.cat(logits, dim=-1).to(self.theta[2].weight.dtype)).squeeze(-1)  # [N, 2 C] -> [N]

    def reversal(self, progress: float | None) -> float:
        """lambda(e), the factor of theta's gradient after `progress` epochs."""
        if not self.warmup_epochs:
            return -1.0
        e = min(epoch_of(progress), self.warmup_epochs)
        return (math.cos(math.pi * e / self.warmup_epochs) + 1) / 2 - 1

    def __repr__(self) -> str:
        names = ("instance", "start", "span", "warmup_epochs") + (("width",) if self.instance else ())
        return f"Learned({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


class _Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number: the gradient reversal layer of CTKD."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None
