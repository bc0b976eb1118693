"""The parameters that weight decay applies to."""

from collections.abc import Collection, Iterable
from typing import Any

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


def group_as_trainer(optimizer: Any, model: nn.Module, decayed: Collection[str]) -> bool:
    """Group parameters of a new optimizer as plain Trainer does, for its checkpoints; whether that is another grouping.

    decayed: names of the parameters that Trainer decays. The first two groups are those with weight decay and without.
    """
    groups = optimizer.param_groups[:2]
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    named = [(name in decayed, parameter) for name, parameter in model.named_parameters() if id(parameter) in grouped]
    parts = [[parameter for found, parameter in named if found is wanted] for wanted in (True, False)]
    if len(groups) < 2 or [len(part) for part in parts] == [len(group["params"]) for group in groups]:
        return False
    for group, part in zip(groups, parts, strict=True):
        group["params"] = part
    return True
