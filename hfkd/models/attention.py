"""Capture of query, key and value of attention blocks, at the call of transformers' attention functions.

sdpa does not return attentions, so that they cannot be read elsewhere. B rows, L positions.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

KEPT_BY = "hfkd_keeps_"  # prefix of the name of the wrapped implementation
IMPLEMENTATIONS = ("sdpa", "eager")
Keep = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], None]

_keepers: WeakKeyDictionary[nn.Module, list[Keep]] = WeakKeyDictionary()


def watch(network: Any, blocks: Sequence[tuple[nn.Module, Keep]]) -> Callable[[], None]:
    """Pass query, key, value, mask [B, 1, L, L] and scale of each block's attention to its `Keep`.

    The outputs of the network do not change. Returns a function that removes the capture. Raises ValueError for a
    network that does not use transformers' attention functions sdpa or eager.
    """
    before = network.config._attn_implementation if isinstance(network, PreTrainedModel) else None
    base = None if before is None else before.removeprefix(KEPT_BY)
    if base not in IMPLEMENTATIONS:
        raise ValueError(
            f"{type(network).__name__} has attn_implementation {base!r}, but attention can only be captured from "
            "transformers models with 'sdpa' or 'eager': load it with one of these"
        )
    name = KEPT_BY + base
    AttentionInterface.register(name, _keeping(base))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    for block, keep in blocks:
        for module in block.modules():
            _keepers.setdefault(module, []).append(keep)
    network.set_attn_implementation(name)

    def undo() -> None:
        for block, keep in blocks:
            for module in block.modules():
                _keepers[module].remove(keep)
        if not any(_keepers.get(module) for module in network.modules()):
            network.set_attn_implementation(base)

    return undo


def _keeping(base: str) -> Callable[..., Any]:
    """The implementation `base`, which also passes its inputs to the `Keep` functions of the module."""

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **more: Any) -> Any:
        for keep in _keepers.get(module, ()):
            unknown = [name for name in ("position_bias", "softcap") if more.get(name) is not None]
            if unknown:
                raise ValueError(
                    f"the attention of {type(module).__name__} has a {unknown[0]}, so that its scores are not only "
                    "scaled products of queries and keys: choose an objective that does not read attention"
                )
            scale = more.get("scaling")
            keep(query, key, value, _mask(module, query, key, attention_mask, more), scale or query.shape[-1] ** -0.5)
        return _function(base, module)(module, query, key, value, attention_mask, **more)

    return attend


def _mask(module: nn.Module, query: Tensor, key: Tensor, mask: Any, more: dict[str, Any]) -> Tensor | None:
    """The attention mask of every row; sdpa omits it where it is the causal triangle."""
    if isinstance(mask, Tensor):
        return mask[..., : key.shape[2]].expand(len(query), -1, -1, -1)
    causal = more.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        return None
    seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    return seen.expand(len(query), 1, -1, -1)


def _function(base: str, module: nn.Module) -> Callable[..., Any]:
    if base != "eager":
        return ALL_ATTENTION_FUNCTIONS[base]
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward")  # noqa: B009 - of its own file
