"""A GPU that computes nothing, on which everything that would make the host wait for a real one is found.

Its tensors have shapes and no values (PyTorch's fake tensors), so reading one fails by itself; a copy between host and
device that does not say `non_blocking` waits until the device's queue is empty, and fails too. The host computes as
usual. Forward passes only: PyTorch's autograd engine asks the driver.
"""

from contextlib import contextmanager

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
LOOKUPS = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class HostWaits(AssertionError):
    pass


class FakeGPU(TorchDispatchMode):
    """While it is on, whatever touches the GPU or is made there is fake, and waiting for it raises `HostWaits`."""

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.watched = True

    def __enter__(self):
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.fake.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(x, FakeTensor) or (isinstance(x, torch.device) and x.type == "cuda") for x in leaves):
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        try:
            result = function(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise HostWaits(f"{function} reads values from the device") from error
        devices = {x.device.type for x in [*leaves, result] if isinstance(x, torch.Tensor)}
        if len(devices) > 1 and self.watched:
            blocks = function in COPIES and True not in (kwargs.get("non_blocking"), *args[2:])
            if blocks or function in LOOKUPS:
                raise HostWaits(f"{function} copies between host and device and waits: say non_blocking")
        return result

    @contextmanager
    def unwatched(self):
        """For what is done once and may wait."""
        self.watched = False
        try:
            yield
        finally:
            self.watched = True

    def move(self, value):
        """A module (in place), or tensors in a dict, to the GPU."""
        if isinstance(value, dict):
            return {name: self.move(x) for name, x in value.items()}
        if isinstance(value, torch.Tensor):
            return value.to(GPU, non_blocking=True)
        for module in value.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = nn.Parameter(self.move(p.detach()), p.requires_grad)
            for name, b in module._buffers.items():
                if b is not None:
                    module._buffers[name] = self.move(b)
        return value
