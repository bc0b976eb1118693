"""Output heads applied to one chunk of hidden states at a time: logits in forward, gradients in backward.

n items in a chunk, H hidden size, C classes or vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hfkd.losses.functional import upcast
from hfkd.losses.rescaling import Rescaling

CACHE_LINE = 64  # bytes

Backward = Callable[[Tensor], Tensor]  # gradient of the logits [n, C] -> gradient of the hidden states [n, H]


class Head:
    """Any module from hidden states to logits, truncated to the first `num_classes` (None: all).

    `rescaling` is what the model applies to its logits afterwards; `rescale` computes it, for any part of the logits.
    The module runs several times per step, with a new dropout mask each time.
    """

    def __init__(self, module: nn.Module, num_classes: int | None = None, rescaling: Rescaling | None = None) -> None:
        self.module, self.rescaling = module, rescaling or Rescaling()
        self.cut = slice(num_classes)
        self.parameters = [p for p in module.parameters() if p.requires_grad]

    def __call__(self, hidden: Tensor) -> Tensor:
        """[n, H] -> [n, C]"""
        device = hidden.device.type
        # Autocast's cache would return weights that were cast without gradient where a gradient is needed.
        with torch.autocast(device, enabled=torch.is_autocast_enabled(device), cache_enabled=torch.is_grad_enabled()):
            return self.module(hidden)[:, self.cut]

    def rescale(self, logits: Tensor) -> Tensor:
        """The logits [n, C] that the model would return, from the head's output, in float32 or wider."""
        return self.rescaling(upcast(logits))

    @torch.no_grad()
    def num_classes(self, hidden: Tensor) -> int:
        """C, from a forward pass on one row of zeros."""
        return self(hidden.new_zeros(1, hidden.shape[-1])).shape[-1]

    def with_backward(self, hidden: Tensor, sums: Sequence[Tensor]) -> tuple[Tensor, Backward]:
        """The logits before rescaling, which the caller may overwrite, and a function that propagates their gradient.

        The function takes the gradient in the dtype of the logits, adds the gradients of the parameters to `sums`, and
        returns the gradient of the hidden states.
        """
        hidden = hidden.detach().requires_grad_()
        with torch.enable_grad():
            logits = self(hidden)

        def backward(gradient: Tensor) -> Tensor:
            of_hidden, *of_parameters = gradients(logits, [hidden, *self.parameters], gradient)
            for total, g in zip(sums, of_parameters, strict=True):
                total.add_(g)
            return of_hidden

        return logits.detach().clone(), backward  # the module may have kept its own output for backward


class LinearHead(Head):
    """An nn.Linear whose gradient is accumulated in place; autograd would first allocate a [C, H] tensor.

    The rows of its logits are aligned to cache lines: with an unaligned vocabulary size the products take up to 1.5
    times as long.
    """

    def __init__(self, module: nn.Linear, num_classes: int | None = None, rescaling: Rescaling | None = None) -> None:
        super().__init__(module, num_classes, rescaling)
        # Cast once instead of for each chunk: autocast would cast a frozen or truncated weight in every call.
        weight, bias = module.weight.detach()[self.cut], module.bias
        device, dtype = weight.device.type, weight.dtype
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.detach()[self.cut].to(dtype)

    def __call__(self, hidden: Tensor) -> Tensor:
        number = self.weight.shape[0]
        per_line = CACHE_LINE // self.weight.itemsize
        logits = self.weight.new_empty(len(hidden), -(-number // per_line) * per_line)[:, :number]
        hidden, weight = hidden.to(self.weight.dtype), self.weight.t()
        return (
            torch.mm(hidden, weight, out=logits)
            if self.bias is None
            else torch.addmm(self.bias, hidden, weight, out=logits)
        )

    def num_classes(self, hidden: Tensor) -> int:
        return self.weight.shape[0]

    def with_backward(self, hidden: Tensor, sums: Sequence[Tensor]) -> tuple[Tensor, Backward]:
        def backward(gradient: Tensor) -> Tensor:
            left = iter(sums)
            if self.module.weight.requires_grad:
                _add_product(next(left)[self.cut], gradient, hidden.to(gradient.dtype))
            if self.bias is not None and self.module.bias.requires_grad:
                total = next(left)[self.cut]
                total += gradient.sum(0, dtype=total.dtype)
            return gradient @ self.weight

        return self(hidden), backward


def head_of(module: nn.Module, num_classes: int | None = None, rescaling: Rescaling | None = None) -> Head:
    """`LinearHead` for a plain nn.Linear without hooks, otherwise `Head`."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    # An nn.Linear with an instance attribute `forward` has been patched, for example by Accelerate.
    if type(module) is nn.Linear and not hooked and "forward" not in vars(module):
        return LinearHead(module, num_classes, rescaling)
    return Head(module, num_classes, rescaling)


def gradients(output: Tensor, inputs: Sequence[Tensor], gradient: Tensor | None = None) -> list[Tensor]:
    """d output / d inputs, zero for unused inputs; without autocast, which is meant for forward passes only."""
    with torch.autocast(output.device.type, enabled=False):
        return list(torch.autograd.grad(output, inputs, gradient, materialize_grads=True))


def _add_product(total: Tensor, g: Tensor, hidden: Tensor) -> None:
    """total [C, H] += g [n, C]^T hidden [n, H]"""
    if g.dtype == total.dtype:
        total.addmm_(g.t(), hidden)
    else:
        total.add_(g.t() @ hidden)
