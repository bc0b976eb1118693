"""What a custom slot changes when it is called, and whether a checkpoint has it.

A slot that is an nn.Module has its parameters and persistent buffers in checkpoints. All else that it keeps from step
to step begins anew in a resumed run.
"""

import functools
import random
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

OF_MODULES = nn.Module().__dict__.keys()


def owner(slot: Any) -> Any:
    """The object whose state a slot may change: of a bound method, and of a `partial` of one, what it is bound to."""
    while isinstance(slot, functools.partial):
        slot = slot.func
    return getattr(slot, "__self__", slot)


def kept_nowhere(slot: Any) -> dict[str, Any]:
    """The attributes of a slot that no checkpoint has, by name; of modules in it too, with their path.

    torch's own modules have their state in buffers.
    """
    slot = owner(slot)
    if not isinstance(slot, nn.Module):
        return dict(vars(slot)) if hasattr(slot, "__dict__") else {}
    stored = slot.state_dict(keep_vars=True).keys()
    found = {name: buffer for name, buffer in slot.named_buffers() if name not in stored}
    for path, module in slot.named_modules():
        if type(module).__module__.startswith("torch.nn."):
            continue
        own = {key: value for key, value in vars(module).items() if key not in OF_MODULES}
        found |= {f"{path}.{key}".lstrip("."): value for key, value in own.items()}
    return found


def in_checkpoints(slot: Any) -> set[str]:
    """The names of the parameters and buffers of a slot that is a module."""
    slot = owner(slot)
    return set(slot.state_dict(keep_vars=True)) if isinstance(slot, nn.Module) else set()


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names whose values are known to differ, or are new."""
    return [key for key in now if key not in before or differ(before[key], now[key])]


def differ(one: Any, other: Any) -> bool:
    """Whether two values of an attribute are known to differ; containers and objects are looked into."""
    return _differ(one, other, set())


def _differ(one: Any, other: Any, seen: set[int]) -> bool:
    """seen: the ids of what has been compared, as objects may hold each other."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return not torch.equal(one, other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return not np.array_equal(one, other)
    plain = (bool, int, float, str, type(None), Tensor, np.ndarray)
    if isinstance(one, plain) or isinstance(other, plain):
        return type(one) is not type(other) or bool(one != other)
    if one is other or type(one) is not type(other) or id(one) in seen:
        return False
    seen.add(id(one))
    mine, its = list(_parts(one)), list(_parts(other))
    return len(mine) != len(its) or any(_differ(a, b, seen) for a, b in zip(mine, its, strict=True))


def _parts(value: Any) -> Iterator[Any]:
    """What an object consists of, as far as it is known."""
    if isinstance(value, torch.Generator):
        yield value.get_state()
    elif isinstance(value, np.random.Generator):
        yield value.bit_generator.state
    elif isinstance(value, np.random.RandomState):
        yield value.get_state()
    elif isinstance(value, random.Random):
        yield value.getstate()
    elif isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, (list, tuple, deque)):
        yield from value
    elif isinstance(value, (set, frozenset)):
        yield len(value)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from vars(value).values()
