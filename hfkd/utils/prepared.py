"""What accelerate leaves on a network that it has prepared for an earlier trainer."""

from typing import Any

from accelerate.utils.operations import ConvertOutputsToFp32
from torch import nn
from torch._dynamo import OptimizedModule

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


def is_autocast(forward: Any) -> bool:
    """Whether a forward is that of accelerate, which also converts outputs to float32."""
    return isinstance(getattr(forward, "__wrapped__", None), ConvertOutputsToFp32)
