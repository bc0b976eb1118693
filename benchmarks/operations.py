"""How many operations run: each is a kernel launch on a GPU, and small batches are bound by those."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

FREE = {"_unsafe_view", "_reshape_alias"}  # views that their schema does not call so


class Operations(TorchDispatchMode):
    """Counts the ATen operations within it, views apart, backward included: `names`, `total`."""

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
