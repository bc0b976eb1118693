"""What accelerate leaves on a network that it has prepared: the autocast around its forward."""

from collections.abc import Callable
from types import MethodType
from typing import Any

from accelerate.utils.operations import ConvertOutputsToFp32
from torch import nn
from torch._dynamo import OptimizedModule

from hfkd.utils.temporary_settings import setting

MARK, INNER = "_is_accelerate_prepared", "_original_forward"


def unprepared(network: nn.Module) -> None:
    """Remove the autocast around a network's forward, and the mark by which accelerate does not prepare it again.

    With these it would compute in the precision of the trainer before, whatever the next one's arguments say.
    """
    compiled: Any = network if isinstance(network, OptimizedModule) else None
    network = network if compiled is None else compiled._orig_mod
    attributes = vars(network)
    attributes.pop(MARK, None)
    if INNER not in attributes:
        return
    if not is_autocast(attributes.get("forward")):
        # It is around the forward of `torch.compile(network)`, which keeps its other attributes in the network.
        if compiled is not None:
            compiled.forward = attributes.pop(INNER)
        return
    inner = attributes.pop(INNER)
    del attributes["forward"]
    if getattr(inner, "__func__", None) is not type(network).forward:  # one of the network's own
        attributes["forward"] = inner


def without_autocast(network: nn.Module) -> Callable[..., Any] | None:
    """What calls a network without the autocast around its forward, bound to it; None if there is none.

    As a call of the network itself it runs the hooks on it, which may prepare its inputs or change its logits.
    """
    attributes = vars(network)
    inner: Callable[..., Any] | None = attributes.get(INNER)
    compiled = getattr(network, "_compiled_call_impl", None) is not None  # it would be compiled once more
    if inner is None or compiled or not is_autocast(attributes.get("forward")):
        return inner  # that of `torch.compile(network)` runs them too
    return MethodType(_call_without_autocast, network)


def _call_without_autocast(network: nn.Module, *arguments: Any, **keywords: Any) -> Any:
    with setting(network, forward=vars(network)[INNER]):
        return network(*arguments, **keywords)


def is_autocast(forward: Any) -> bool:
    """Whether a forward is that of accelerate, which also converts outputs to float32."""
    return isinstance(getattr(forward, "__wrapped__", None), ConvertOutputsToFp32)
