"""Counts operations, each a kernel launch on a GPU, and bytes of tensors."""

import weakref
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE = {"_unsafe_view", "_reshape_alias"}  # views that their schema does not call so


class Operations(TorchDispatchMode):
    """Context that counts ATen operations, except views, including backward: `names`, `total`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.names.values())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = [r.alias_info for r in function._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        name = function.overloadpacket.__name__
        if not is_view and name not in FREE:
            self.names[name] += 1
        return function(*args, **(kwargs or {}))


class Bytes(TorchDispatchMode):
    """Context that counts the bytes of tensors created in it that are still alive: `live`, with the maximum `peak`.

    Allocator overhead is not included, so that results are the same on every machine.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size
