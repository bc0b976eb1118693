"""Inner features of a network, kept while it runs: forward hooks, which work whatever wraps it.

B rows.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hfkd.models.attention import watch
from hfkd.models.calling import bare
from hfkd.models.stages import expanded, tap_of
from hfkd.utils.attention import Attention

LOGITS = "logits"  # what the network returns: nothing to hook
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
Result = TypeVar("Result")


class FeatureCapture:
    """The features of `keys`, each time the network runs within `run`; at any other time hooks that do nothing.

    Placed when it is built, before anything compiles the network: torch.compile does not see hooks that come later. A
    layer that is written over by the next one (an in-place ReLU) is kept as a copy; `probe` finds which are.
    """

    def __init__(self, network: nn.Module, keys: Sequence[str], role: str) -> None:
        self.network, self.role = bare(network), role
        self.groups = expanded(network, keys)
        self.keys = tuple(dict.fromkeys(one for several in self.groups.values() for one in several))
        self.taps = {key: tap_of(network, key) for key in self.keys if key != LOGITS}
        self.found: dict[str, Any] = {}
        # A dropout that works in place does so in training alone, where a probe does not see it.
        drops = any(isinstance(m, DROPOUTS) and m.inplace for m in self.network.modules())
        self.copied: frozenset[str] = frozenset(self.taps if drops else ())
        self.open = False
        self.handles: list[RemovableHandle] = []
        self.unwatch: Callable[[], None] | None = None
        self.place()

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The module that each feature is read at."""
        return {key: self.network.get_submodule(tap.path) for key, tap in self.taps.items()}

    def place(self) -> None:
        attending = ((key, module) for key, module in self.modules.items() if self.taps[key].attention)
        attention = [(module, self._attention_keeper(key)) for key, module in attending]
        self.unwatch = watch(self.network, attention) if attention else None
        for key, module in self.modules.items():
            tap = self.taps[key]
            if tap.attention:
                continue
            # No closures: a network with these hooks can be pickled and copied.
            if tap.input:
                hook = module.register_forward_pre_hook(partial(self._keep_input, key), with_kwargs=True)
            else:
                hook = module.register_forward_hook(partial(self._keep_output, key))
            self.handles.append(hook)

    def remove(self) -> None:
        """Leave the network as it was."""
        while self.handles:
            self.handles.pop().remove()
        if self.unwatch is not None:
            self.unwatch()
            self.unwatch = None

    def _attention_keeper(self, key: str) -> Callable[..., None]:
        def keep(*parts: Any) -> None:
            if self.open and key in self.found:
                raise ValueError(
                    f"layer {key!r}: the block {self.taps[key].path} of the {self.role} attends twice in one forward, "
                    "and nothing says which is meant: choose an objective that does not read it"
                )
            if self.open:
                self.found[key] = Attention(*parts)

        return keep

    def _keep_input(self, key: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.open:
            self._keep(key, args or tuple(kwargs.values()))

    def _keep_output(self, key: str, module: nn.Module, args: Any, output: Any) -> None:
        if self.open:
            self._keep(key, output)

    def _keep(self, key: str, value: Any) -> None:
        tap = self.taps[key]
        feature = torch.cat(value, 1) if tap.parts else _tensor(value[0][-1] if tap.last else value)
        if tap.channels_last and feature.ndim == 4:
            feature = feature.permute(0, 3, 1, 2)
        self.found[key] = feature.clone() if key in self.copied else feature

    def run(self, forward: Callable[[], Result]) -> tuple[Result, dict[str, Any]]:
        """What `forward`, which runs the network once, returns; and the features [B, ...], without "logits".

        Raises ValueError for one that did not come: the network did not run its layer. Whatever runs later, as gradient
        checkpointing does in the backward pass, is not kept.
        """
        self.found, self.open = {}, True
        try:
            result = forward()
        finally:
            self.open = False
        found, self.found = self.found, {}
        for key, tap in self.taps.items():
            if key not in found and tap.attention:
                raise ValueError(
                    f"layer {key!r}: the block {tap.path} of the {self.role} calls none of transformers' attention "
                    "functions, so that queries and keys cannot be read: choose an objective that does not read them"
                )
            if key not in found:
                raise ValueError(
                    f"the {self.role} did not run {tap} for layer {key!r}: its forward passes that module by, in this "
                    "step at least; name a module that every forward calls"
                )
        return result, found


def _tensor(value: Any) -> Tensor:
    """The first tensor of what a module gives or gets: blocks of transformers give tuples."""
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    first = next((part for part in parts if isinstance(part, Tensor)), None)
    if first is None:
        raise ValueError(f"a layer that was asked for gives a {type(value).__name__}, and no tensor: name another")
    return first


def read_within(network: nn.Module, keys: Sequence[str], module: nn.Module | None) -> list[str]:
    """Which features of `keys` are read at `module` of the network, or at a part of it."""
    parts, inner = set() if module is None else set(module.modules()), bare(network)
    each = [key for several in expanded(network, keys).values() for key in several if key != LOGITS]
    return [key for key in each if inner.get_submodule(tap_of(network, key).path) in parts]


class Probe:
    """What a capture is to know before training: that each feature comes once, unchanged and of the right shape."""

    def __init__(self, capture: FeatureCapture) -> None:
        self.capture = capture
        self.times = dict.fromkeys(capture.taps, 0)
        self.versions: dict[str, tuple[Tensor, int]] = {}

    def run(self, forward: Callable[[], Result]) -> tuple[Result, dict[str, Any]]:
        """`FeatureCapture.run`, which from now on copies what is written over.

        Raises ValueError for a module that runs several times in one forward.
        """
        capture = self.capture
        hooks = [
            self._counting(key, module) for key, module in capture.modules.items() if not capture.taps[key].attention
        ]
        try:
            result, found = capture.run(forward)
        finally:
            for hook in hooks:
                hook.remove()
        for key, times in self.times.items():
            if times > 1:
                raise ValueError(
                    f"layer {key!r}: the {capture.role} runs {capture.taps[key]} {times} times in one forward, and "
                    "nothing says which is meant: name a module that runs once"
                )
        changed = {key for key, (tensor, version) in self.versions.items() if tensor._version != version}
        changed = {key for key in changed if not capture.taps[key].parts}  # put together anew
        if changed:
            capture.copied = capture.copied | changed
            result, found = capture.run(forward)
        for key, feature in found.items():
            self._check_channels(key, feature)
        return result, found

    def _check_channels(self, key: str, feature: Tensor) -> None:
        tap = self.capture.taps[key]
        if tap.attention:
            return
        if tap.channels is not None and feature.ndim == 4 and feature.shape[1] != tap.channels:
            raise ValueError(
                f"layer {key!r}: the {self.capture.role} says that {tap} has {tap.channels} channels, and it gives "
                f"{tuple(feature.shape)}: name a module by its path that gives [batch, channels, height, width]"
            )

    def _counting(self, key: str, module: nn.Module) -> RemovableHandle:
        def count(value: Any) -> None:
            self.times[key] += 1
            tensor = _tensor(value[0][-1] if self.capture.taps[key].last else value)
            self.versions[key] = tensor, tensor._version

        if self.capture.taps[key].input:
            return module.register_forward_pre_hook(lambda m, a, k: count(a or tuple(k.values())), with_kwargs=True)
        return module.register_forward_hook(lambda m, a, output: count(output))


@torch.no_grad()
def refuse_other_head(
    capture: FeatureCapture, found: Mapping[str, Any], logits: Tensor, order: Sequence[int] | None = None
) -> None:
    """Raise ValueError where "pooled" is not what the logits are made of: the last linear layer is no head.

    order: that of the classes in `logits`, by their numbers in the network.
    """
    if "pooled" not in found:
        return
    head, pooled = capture.modules["pooled"], found["pooled"]
    made = head(pooled.to(next(head.parameters()).dtype))
    made = made if order is None else made[..., list(order)]
    if made.shape != logits.shape or not torch.allclose(made.float(), logits.float(), rtol=1e-2, atol=1e-2):
        raise ValueError(
            f"layer 'pooled': the logits of the {capture.role} are not what its last linear layer "
            f"({capture.taps['pooled'].path}) makes of its input; name the module that gives the pooled features"
        )
