"""Networks that were compiled before they are passed, by `torch.compile(network)` or `network.compile()`.

The code that was compiled ignores hooks that are added later.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch._dynamo import OptimizedModule


def compiled_parts(network: nn.Module) -> list[nn.Module]:
    """The modules of a network, itself among them, whose calls are compiled."""
    return [
        module
        for module in network.modules()
        if isinstance(module, OptimizedModule) or getattr(module, "_compiled_call_impl", None) is not None
    ]


def compiled_around(network: nn.Module, part: nn.Module | None) -> bool:
    """Whether `part` of a network runs within compiled code."""
    return any(part is inner for outer in compiled_parts(network) for inner in outer.modules())


def eagerly(networks: Iterable[nn.Module]) -> AbstractContextManager[object]:
    """Context in which networks run as they are written, so that hooks apply, and nothing is compiled for a few rows.

    Only if one of them is compiled: what a network compiles by itself (flex attention) needs that.
    """
    found = any(compiled_parts(network) for network in networks)
    return torch.compiler.set_stance("force_eager") if found else nullcontext()
