"""A student from its teacher: some of the teacher's layers, weights included."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hfkd.utils.numbers import evenly_spread

How = Literal["uniform", "first", "last"]
COUNT = re.compile(
    r"^(n_layers?|(num_)?((encoder|decoder|hidden)_)?layers)$"
)  # what configurations call a stack's depth
NUMBER = ("layer_idx", "layer_id", "layer_number")  # which layer a module is: the one setting that is renewed
PLAIN = (bool, int, float, str, tuple, type(None))


def prune_layers(
    model: PreTrainedModel,
    keep: int | Sequence[int],
    how: How = "uniform",
    part: Literal["all", "encoder", "decoder"] = "all",
) -> PreTrainedModel:
    """A new model of the same class with `keep` of the layers of `model`, and copies of all weights that stay.

    keep: how many, or which (`[0, 2, 5]`, counted from 0). how: of N layers, "uniform" takes the numbers
    round(i (N - 1) / (keep - 1)), first and last included, as Distil-Whisper does (Gandhi et al. 2023), "first" those
    nearest to the input and "last" those nearest to the output. part: of a model with an encoder and a decoder, which
    of them loses layers; Distil-Whisper keeps the encoder whole. Layers are numbered anew, so that generating with a
    cache works, and the configuration tells the new depth: what `save_pretrained` writes, Auto classes load.

    A weight that only the first layer has (T5's relative positions) goes to the new first layer.
    Raises ValueError for a model whose layers are not found or not all of one kind, and for layers that do not exist.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"prune_layers: {type(model).__name__} is no PreTrainedModel of transformers; prune the model before it is "
            "wrapped or compiled, or before an adapter is added"
        )
    if getattr(model, "quantization_method", None) is not None:
        raise ValueError("prune_layers: the weights are quantised; load the model in float32, float16 or bfloat16")
    stacks = depths(model, part)
    config = copy.deepcopy(model.config)
    kept = {name: chosen(keep, how, depth, name) for name, depth in stacks.items()}
    for name, layers in kept.items():
        _cut(config, name, layers, stacks[name])
    places = _places(model, kept)
    student: Any = type(model)(config)
    student.to(device=model.device, dtype=model.dtype)
    weights = _renamed(model.state_dict(), set(student.state_dict()), places)
    student.load_state_dict(weights)
    _refuse_other_settings(model, student, places)
    if model.can_generate():
        student.generation_config = copy.deepcopy(model.generation_config)
    return student.train(model.training)


def chosen(keep: int | Sequence[int], how: How, depth: int, name: str) -> list[int]:
    """The numbers of the layers that stay."""
    if isinstance(keep, int):
        if not 0 < keep <= depth:
            raise ValueError(f"prune_layers: keep={keep}, and {name} is {depth}: keep from 1 to {depth} layers")
        if how == "uniform":
            return evenly_spread(keep, depth)
        if how not in ("first", "last"):
            raise ValueError(f"prune_layers: how={how!r}: pass 'uniform', 'first' or 'last'")
        return list(range(keep)) if how == "first" else list(range(depth - keep, depth))
    layers = list(keep)
    if not layers or sorted(set(layers)) != layers or not all(0 <= layer < depth for layer in layers):
        raise ValueError(f"prune_layers: keep={layers}: give numbers from 0 to {depth - 1} ({name}={depth}), rising")
    return layers


def depths(model: PreTrainedModel, part: str = "all") -> dict[str, int]:
    """{setting of the configuration: depth} of every stack of layers of a model, or of its encoder or decoder."""
    if part not in ("all", "encoder", "decoder"):
        raise ValueError(f"prune_layers: part={part!r}: pass 'all', 'encoder' or 'decoder'")
    config = model.config.get_text_config()
    found = {name: value for name, value in vars(config).items() if COUNT.match(name) and type(value) is int}
    if getattr(config, "is_encoder_decoder", False):
        decoders = [name for name in ("num_decoder_layers", "decoder_layers") if name in found]
        encoders = [name for name in ("num_layers", "encoder_layers") if name in found]
        found = {name: found[name] for name in (*encoders, *decoders)}
        if part != "all":
            found = {name: found[name] for name in (decoders if part == "decoder" else encoders)}
    elif part != "all":
        raise ValueError(f"prune_layers: part={part!r}, and {type(model).__name__} has one stack: leave part out")
    if not found:
        raise ValueError(f"prune_layers: {type(config).__name__} does not say how many layers the model has")
    return found


def _cut(config: PreTrainedConfig, name: str, layers: Sequence[int], depth: int) -> None:
    """Set the depth, and shorten what the configuration lists for each layer."""
    text = config.get_text_config()
    for key, value in vars(text).items():
        if isinstance(value, (list, tuple)) and len(value) == depth and "layer" in key:
            setattr(text, key, [value[layer] for layer in layers])
    setattr(text, name, len(layers))


def _stacks(model: nn.Module) -> dict[str, int]:
    return {path: len(module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}


def _places(model: PreTrainedModel, kept: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """{path of a list of layers: which of them stay}, found by building the model shallower, setting by setting."""
    before, places = _stacks(model), dict[str, list[int]]()
    for name, layers in kept.items():
        alone = copy.deepcopy(model.config)
        depth = getattr(alone.get_text_config(), name)
        _cut(alone, name, [0], depth)
        with torch.device("meta"):
            shallow = _stacks(type(model)(alone))
        changed = [path for path in before if depth > 1 and before[path] == depth and shallow.get(path) == 1]
        if not changed and depth > 1:
            raise ValueError(
                f"prune_layers: {name}={depth}, and {type(model).__name__} has no list of so many layers (some "
                "models share one layer)"
            )
        places |= dict.fromkeys(changed, layers)
    return places


def _renamed(weights: Mapping[str, Tensor], wanted: set[str], places: Mapping[str, list[int]]) -> dict[str, Tensor]:
    found = {}
    for name in wanted:
        path, new, rest = _split(name, places)
        if path is None:
            source = name
        else:
            source = f"{path}.{places[path][new]}.{rest}"
            if source not in weights and new == 0:  # shared by all layers and kept in the first
                source = f"{path}.0.{rest}"
        if source not in weights:
            raise ValueError(
                f"prune_layers: {name} would be {source}, which the model does not have: its layers are of several "
                "kinds; name layers by keep=[...] that are of the same kinds in the same order"
            )
        found[name] = weights[source]
    return found


def _split(name: str, places: Mapping[str, list[int]]) -> tuple[str | None, int, str]:
    """A parameter's stack, number of its layer there, and name inside of it; None where it is in no stack."""
    for path in places:
        if name.startswith(f"{path}."):
            number, _, rest = name[len(path) + 1 :].partition(".")
            return path, int(number), rest
    return None, 0, name


def _refuse_other_settings(model: nn.Module, student: nn.Module, places: Mapping[str, list[int]]) -> None:
    """Raise ValueError where a kept layer computes otherwise than it did (a window, a scale that grows with depth)."""
    for path, layers in places.items():
        for new, old in enumerate(layers):
            there = dict(_settings(model.get_submodule(f"{path}.{old}")))
            for key, value in _settings(student.get_submodule(f"{path}.{new}")):
                if there.get(key) != value and not (new == 0 and "relative_attention_bias" in key):
                    raise ValueError(
                        f"prune_layers: {key} of layer {old} is {there.get(key)!r}, and would be {value!r} as layer "
                        f"{new}: keep the layers that are alike at their new places"
                    )


def _settings(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in layer.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, PLAIN) and not key.startswith("_") and key not in (*NUMBER, "training"):
                yield f"{path}.{key}".lstrip("."), value
