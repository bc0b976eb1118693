"""A network whose weights are cast for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def kept_weights(network: nn.Module) -> Iterator[None]:
    """Within it the network may be cast, in place as `nn.Module.to` does; afterwards its weights are what they were.

    They are kept in memory beside those that they are cast to.
    """
    parameters = [(parameter, parameter.data) for parameter in network.parameters()]
    buffers = [(module, name, one) for module in network.modules() for name, one in module._buffers.items()]
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for module, name, one in buffers:
            module._buffers[name] = one
