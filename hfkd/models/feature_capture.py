"""Capture of a network's inner features by forward hooks, which work inside any wrapper of the network.

B rows.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hfkd.models.attention import watch
from hfkd.models.calling import bare, output_head
from hfkd.models.stages import expanded, tap_of
from hfkd.utils.attention import Attention
from hfkd.utils.compiled import compiled_parts

LOGITS = "logits"  # the network's output, which needs no hook
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
Result = TypeVar("Result")


class FeatureCapture:
    """Captures the features of `keys` when the network runs within `run`; at other times its hooks do nothing.

    The hooks are registered when it is built, before the network is compiled: torch.compile ignores hooks that are
    added later, so that one that is compiled already is compiled anew. A feature that the next layer overwrites (an
    in-place ReLU) is captured as a copy; `Probe` finds these.
    """

    def __init__(self, network: nn.Module, keys: Sequence[str], role: str) -> None:
        self.network, self.role = bare(network), role
        self.groups = expanded(network, keys)
        self.keys = tuple(dict.fromkeys(one for several in self.groups.values() for one in several))
        self.taps = {key: tap_of(network, key) for key in self.keys if key != LOGITS}
        self.found: dict[str, Any] = {}
        # An in-place dropout overwrites its input in training mode only, which a probe does not see.
        drops = any(isinstance(m, DROPOUTS) and m.inplace for m in self.network.modules())
        self.copied: frozenset[str] = frozenset(self.taps if drops else ())
        self.open = False
        self.handles: list[RemovableHandle] = []
        self.unwatch: Callable[[], None] | None = None
        self.place()
        if compiled_parts(network):  # what has been compiled before would go on without the hooks
            torch.compiler.reset()

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The module at which each feature is captured."""
        return {key: self.network.get_submodule(tap.path) for key, tap in self.taps.items()}

    def place(self) -> None:
        attending = ((key, module) for key, module in self.modules.items() if self.taps[key].attention)
        attention = [(module, self._attention_keeper(key)) for key, module in attending]
        self.unwatch = watch(self.network, attention) if attention else None
        for key, module in self.modules.items():
            tap = self.taps[key]
            if tap.attention:
                continue
            # Not closures, so that a network with these hooks can be pickled and copied.
            if tap.input:
                hook = module.register_forward_pre_hook(partial(self._keep_input, key), with_kwargs=True)
            else:
                hook = module.register_forward_hook(partial(self._keep_output, key))
            self.handles.append(hook)

    def remove(self) -> None:
        """Remove all hooks from the network."""
        while self.handles:
            self.handles.pop().remove()
        if self.unwatch is not None:
            self.unwatch()
            self.unwatch = None

    def _attention_keeper(self, key: str) -> Callable[..., None]:
        def keep(*parts: Any) -> None:
            if self.open and key in self.found:
                raise ValueError(
                    f"layer {key!r}: the block {self.taps[key].path} of the {self.role} computes attention twice in "
                    "one forward pass, so that the layer is ambiguous: choose an objective that does not read it"
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
        """The result of `forward`, which runs the network once, and the features [B, ...], without "logits".

        Raises ValueError for a feature whose layer did not run. Later runs, such as those of gradient checkpointing in
        the backward pass, are not captured.
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
                    f"layer {key!r}: the block {tap.path} of the {self.role} does not call transformers' attention "
                    "functions, so that its queries and keys cannot be captured: choose an objective that does not "
                    "read them"
                )
            if key not in found:
                raise ValueError(
                    f"the forward pass of the {self.role} did not call {tap} for layer {key!r}: name a module that "
                    "every forward pass calls"
                )
        return result, found


def _tensor(value: Any) -> Tensor:
    """The first tensor of a module's output or input, which may be a tuple, as for transformers' blocks."""
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    first = next((part for part in parts if isinstance(part, Tensor)), None)
    if first is None:
        raise ValueError(
            f"a layer that an objective reads returns a {type(value).__name__} instead of a tensor: name another layer"
        )
    return first


def read_within(network: nn.Module, keys: Sequence[str], module: nn.Module | None) -> list[str]:
    """Those features of `keys` that are captured at `module` of the network, or at a submodule of it."""
    parts, inner = set() if module is None else set(module.modules()), bare(network)
    each = [key for several in expanded(network, keys).values() for key in several if key != LOGITS]
    return [key for key in each if inner.get_submodule(tap_of(network, key).path) in parts]


def in_decoder(network: nn.Module, keys: Sequence[str]) -> frozenset[str]:
    """Those features of `keys` that are captured in the decoder of an encoder-decoder, or in its output head."""
    inner: Any = bare(network)
    if not getattr(getattr(inner, "config", None), "is_encoder_decoder", False) or not hasattr(inner, "get_decoder"):
        return frozenset()
    return frozenset(
        key for part in (inner.get_decoder(), output_head(inner)) for key in read_within(inner, keys, part)
    )


def frames_of(network: nn.Module) -> Callable[[int, Tensor], Tensor] | None:
    """How a network of sound (Wav2Vec2, HuBERT) makes a mask over its frames [B, L], from L and one over samples."""
    inner: Any = bare(network)
    shortened = getattr(getattr(inner, "config", None), "add_adapter", False)  # the last states alone are shorter still
    return None if shortened else getattr(inner, "_get_feature_vector_attention_mask", None)


class Probe:
    """Checks a capture before training: each feature must come once, not be overwritten, and have the right shape."""

    def __init__(self, capture: FeatureCapture) -> None:
        self.capture = capture
        self.times = dict.fromkeys(capture.taps, 0)
        self.versions: dict[str, tuple[Tensor, int]] = {}

    def run(self, forward: Callable[[], Result]) -> tuple[Result, dict[str, Any]]:
        """`FeatureCapture.run`, which from now on copies the features that the network overwrites.

        Raises ValueError for a module that runs several times in one forward pass.
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
                    f"layer {key!r}: the {capture.role} calls {capture.taps[key]} {times} times in one forward pass, "
                    "so that the layer is ambiguous: name a module that is called once"
                )
        changed = {key for key, (tensor, version) in self.versions.items() if tensor._version != version}
        changed = {key for key in changed if not capture.taps[key].parts}  # concatenations are new tensors
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
                f"layer {key!r}: according to the {self.capture.role}, {tap} has {tap.channels} channels, but its "
                f"output has the shape {tuple(feature.shape)}: name by its path a module whose output is [batch, "
                "channels, height, width]"
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
    """Raise ValueError if the logits are not computed from "pooled": the last linear layer is not the head.

    order: for each class of `logits`, its index in the network.
    """
    if "pooled" not in found:
        return
    head, pooled = capture.modules["pooled"], found["pooled"]
    made = head(pooled.to(next(head.parameters()).dtype))
    made = made if order is None else made[..., list(order)]
    largest = float(logits.abs().max())  # of a new network they may be tiny, and those of any layer near them
    atol = 1e-2 * min(largest, 1.0)
    if made.shape != logits.shape or not torch.allclose(made.float(), logits.float(), rtol=1e-2, atol=atol):
        raise ValueError(
            f"layer 'pooled': the logits of the {capture.role} are not the output of its last linear layer "
            f"({capture.taps['pooled'].path}): name the module that returns the pooled features"
        )
