"""The parameters that weight decay applies to."""

from collections.abc import Iterable

from torch import nn


def without_norms(names: Iterable[str], model: nn.Module) -> list[str]:
    """`names` of parameters of `model`, without those of normalisation layers, whatever these are called.

    Trainer knows LayerNorm by its class and others by names such as `norm`, so that it decays the weights of batch
    norms (`bn1`, `downsample.1`), but not their biases.
    """
    of_norms = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim <= 1
    }
    return [name for name in names if name not in of_norms]
