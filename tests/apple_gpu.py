"""What Apple's GPUs (MPS) do not have, played on the CPU: float64.

A tensor is on the device if it is a parameter, a batch that Trainer has prepared, or was computed from one; `.cpu()`
brings it back. PyTorch refuses float64 there with a TypeError of this text.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import Trainer

REFUSED = "Cannot convert a MPS Tensor to float64 dtype"
ASKS = (
    "hfkd.losses.features.sakd",
    "hfkd.losses.functional",
    "hfkd.losses.rescaling",
    "hfkd.teachers.image_cache.quantize",
)


class AppleGPU(TorchDispatchMode):
    """While it is on, a float64 tensor made from one on the device is a TypeError."""

    def __init__(self) -> None:
        super().__init__()
        self.there = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        result = function(*args, **(kwargs or {}))
        if any(isinstance(x, nn.Parameter) or x in self.there for x in given):
            self.hold(result)
        return result

    def hold(self, values: Any) -> None:
        for x in tree_leaves(values):
            if isinstance(x, Tensor):
                if x.dtype == torch.float64:
                    raise TypeError(REFUSED)
                self.there[x] = True

    @contextmanager
    def training(self) -> Iterator[None]:
        """Context in which Trainer's batches are on the device, and `.cpu()` is a copy that is not."""
        prepare = Trainer._prepare_inputs

        def on_device(trainer: Any, inputs: Any) -> Any:
            prepared = prepare(trainer, inputs)
            self.hold(dict(prepared))
            return prepared

        def back(x: Tensor) -> Tensor:
            copy = x.clone()
            self.there.pop(copy, None)
            return copy

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(Trainer, "_prepare_inputs", on_device))
            stack.enter_context(mock.patch.object(Tensor, "cpu", back))
            stack.enter_context(without_float64())
            stack.enter_context(self)
            yield


@contextmanager
def without_float64() -> Iterator[None]:
    """Context in which the code with two ways takes the one for these GPUs."""
    with ExitStack() as stack:
        for module in ASKS:
            stack.enter_context(mock.patch(f"{module}.widest_float", return_value=torch.float32))
        yield
