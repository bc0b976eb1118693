"""Conversion of weights from the names in a saved file to the names and shapes of a network.

transformers saves some networks under the names of earlier versions: a ViT's `vit.layers.0.attention.q_proj` is
`vit.encoder.layer.0.attention.attention.query` in its files. Other weights are saved in other shapes, such as experts
one by one. `from_pretrained` converts them back; `load_state_dict` does not.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key


def as_in_network(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` from a file of `save_pretrained` or `state_dict`, with the names and shapes of `network.state_dict()`.

    As in `from_pretrained`, a name that the network does not have is converted if the network has the converted name.
    Other names are kept, for the caller to refuse. Weights of networks from outside transformers are not changed.
    """
    if not isinstance(network, PreTrainedModel):
        return dict(weights)
    own, prefix, transforms = network.state_dict(), network.base_model_prefix, _transforms(network)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    found: dict[str, Tensor] = {}
    collected: dict[str, WeightConverter] = {}
    for name in sorted(weights, key=dot_natural_key):  # experts in the order of their number
        target, pattern = rename_source_key(name, renamings, converters, prefix, own)
        if target not in own and name in own:
            target, pattern = name, None
        if pattern is None:
            found[target if target in own and target not in found else name] = weights[name]
        else:
            converter = collected.setdefault(target, deepcopy(by_pattern[pattern]))
            converter.add_tensor(target, name, pattern, cast(Any, weights[name]))
    for target, converter in collected.items():
        made = converter.convert(target, model=network, config=network.config)
        found |= {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
    return found


def _transforms(network: PreTrainedModel) -> list[Any]:
    """The conversions of transformers, after those of the `key_mapping` that the network was loaded with."""
    known = get_model_conversion_mapping(network)
    used = getattr(network, "_weight_conversions", None) or []
    patterns = {(tuple(one._original_source_patterns), one.scope_prefix) for one in known}
    users = [one for one in used if (tuple(one._original_source_patterns), one.scope_prefix) not in patterns]
    return [*deepcopy(users), *known]
