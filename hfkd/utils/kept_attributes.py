"""What modules remember besides parameters and buffers, restored after a trial run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

REMEMBERED = (int, float, str)  # not bool: transformers marks by one that it has placed its hooks, which stay


@contextmanager
def kept_attributes(network: nn.Module) -> Iterator[None]:
    """Context after which numbers, names, children and buffers that a forward pass has exchanged are as before.

    BigBird turns to full attention for good in a short row; dynamic rotary positions remember the longest row.
    Nothing is restored where parameters have changed too, whose state an attribute may describe (RWKV), and no module
    that has become another class, as lazy ones do.
    """
    versions = _versions(network)
    modules = [m for m in network.modules() if not isinstance(m, torch.jit.ScriptModule)]  # which have no such dicts
    before = [(m, type(m), _remembered(m), dict(m._modules), dict(m._buffers)) for m in modules]
    try:
        yield
    finally:
        if _versions(network) == versions:
            for module, kind, values, children, buffers in before:
                if type(module) is kind:
                    vars(module).update(values)
                    _put_back(module._modules, children)
                    _put_back(module._buffers, buffers)


def _remembered(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if type(value) in REMEMBERED}


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    now.update({name: value for name, value in before.items() if now.get(name) is not value})


def _versions(network: nn.Module) -> list[tuple[int, int]]:
    """Which parameters there are, and how often each has been changed in place."""
    return [(id(p), 0 if p.is_inference() else p._version) for p in network.parameters()]
