"""A student made of some of its teacher's layers, with their weights."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hfkd.models.started_from import PRUNED, started_from
from hfkd.utils.numbers import evenly_spread

How = Literal["uniform", "first", "last"]
COUNT = re.compile(r"^(n_layers?|(num_)?((encoder|decoder|hidden)_)?layers)$")  # the names of depths in configurations
NUMBER = ("layer_idx", "layer_id", "layer_number")  # the index of a layer, the only setting that changes
PLAIN = (bool, int, float, str, tuple, type(None))


def prune_layers(
    model: PreTrainedModel,
    keep: int | Sequence[int],
    how: How = "uniform",
    part: Literal["all", "encoder", "decoder"] = "all",
) -> PreTrainedModel:
    """A new model of the same class with `keep` of the layers of `model`, and copies of all remaining weights.

    keep: the number of layers, or their indices (`[0, 2, 5]`, counted from 0). how: of N layers, "uniform" takes the
    indices round(i (N - 1) / (keep - 1)), which include the first and last, as in Distil-Whisper (Gandhi et al. 2023);
    "first" takes those nearest to the input and "last" those nearest to the output. part: which stack of an
    encoder-decoder is pruned; Distil-Whisper keeps the whole encoder. Layers are renumbered, so that generation with a
    cache works, and the configuration has the new depth, so that Auto classes load what `save_pretrained` writes. A
    weight that only the first layer has (T5's relative positions) is given to the new first layer. Raises ValueError
    for a model whose layers are not found or are of several kinds, and for layers that do not exist.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"prune_layers: {type(model).__name__} is not a transformers PreTrainedModel: prune the model before it "
            "is wrapped or compiled, and before an adapter is added"
        )
    if getattr(model, "quantization_method", None) is not None:
        raise ValueError("prune_layers: the weights are quantised: load the model in float32, float16 or bfloat16")
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
    setattr(student, PRUNED, started_from(model))
    return student.train(model.training)


def chosen(keep: int | Sequence[int], how: How, depth: int, name: str) -> list[int]:
    """The indices of the layers to keep."""
    if isinstance(keep, int):
        if not 0 < keep <= depth:
            raise ValueError(f"prune_layers: keep={keep}, but {name} is {depth}: keep from 1 to {depth} layers")
        if how == "uniform":
            return evenly_spread(keep, depth)
        if how not in ("first", "last"):
            raise ValueError(f"prune_layers: how={how!r}: pass 'uniform', 'first' or 'last'")
        return list(range(keep)) if how == "first" else list(range(depth - keep, depth))
    layers = list(keep)
    if not layers or sorted(set(layers)) != layers or not all(0 <= layer < depth for layer in layers):
        raise ValueError(
            f"prune_layers: keep={layers} must be ascending layer indices from 0 to {depth - 1} ({name}={depth})"
        )
    return layers


def depths(model: PreTrainedModel, part: str = "all") -> dict[str, int]:
    """{setting of the configuration: depth} of every stack of layers of a model, or of its encoder or decoder."""
    if part not in ("all", "encoder", "decoder"):
        raise ValueError(f"prune_layers: part={part!r}: pass 'all', 'encoder' or 'decoder'")
    config = model.config.get_text_config()
    found = depths_of(model.config)
    if getattr(config, "is_encoder_decoder", False):
        decoders = [name for name in ("num_decoder_layers", "decoder_layers") if name in found]
        encoders = [name for name in ("num_layers", "encoder_layers") if name in found]
        found = {name: found[name] for name in (*encoders, *decoders)}
        if part != "all":
            found = {name: found[name] for name in (decoders if part == "decoder" else encoders)}
    elif part != "all":
        raise ValueError(
            f"prune_layers: part={part!r}, but {type(model).__name__} is not an encoder-decoder: leave part out"
        )
    if not found:
        raise ValueError(
            f"prune_layers: {type(config).__name__} has no known setting for the number of layers, so this model "
            "cannot be pruned"
        )
    return found


def depths_of(config: PreTrainedConfig) -> dict[str, int]:
    """The settings of a configuration that are numbers of layers."""
    settings = vars(config.get_text_config())
    return {name: value for name, value in settings.items() if COUNT.match(name) and type(value) is int}


def _cut(config: PreTrainedConfig, name: str, layers: Sequence[int], depth: int) -> None:
    """Set the depth in the configuration, and shorten its lists that have one entry per layer."""
    text = config.get_text_config()
    for key, value in vars(text).items():
        if isinstance(value, (list, tuple)) and len(value) == depth and "layer" in key:
            setattr(text, key, [value[layer] for layer in layers])
    setattr(text, name, len(layers))


def _stacks(model: nn.Module) -> dict[str, int]:
    return {path: len(module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}


def _places(model: PreTrainedModel, kept: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """{path of a list of layers: the indices to keep}, found by building the model with each depth set to 1."""
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
                f"prune_layers: {name}={depth}, but {type(model).__name__} has no list of that many layers, so it "
                "cannot be pruned (some models share a single layer)"
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
            if source not in weights and new == 0:  # weights that all layers share are stored in the first
                source = f"{path}.0.{rest}"
        if source not in weights:
            raise ValueError(
                f"prune_layers: {name} would be copied from {source}, which the model does not have, because its "
                "layers are of several kinds: name layers of the same kinds in the same order by keep=[...]"
            )
        found[name] = weights[source]
    return found


def _split(name: str, places: Mapping[str, list[int]]) -> tuple[str | None, int, str]:
    """A parameter's stack (None if it has none), the index of its layer there, and its name in the layer."""
    for path in places:
        if name.startswith(f"{path}."):
            number, _, rest = name[len(path) + 1 :].partition(".")
            return path, int(number), rest
    return None, 0, name


def _refuse_other_settings(model: nn.Module, student: nn.Module, places: Mapping[str, list[int]]) -> None:
    """Raise ValueError if a kept layer would compute differently (a window, a scale that depends on the index)."""
    for path, layers in places.items():
        for new, old in enumerate(layers):
            there = dict(_settings(model.get_submodule(f"{path}.{old}")))
            for key, value in _settings(student.get_submodule(f"{path}.{new}")):
                if there.get(key) != value and not (new == 0 and "relative_attention_bias" in key):
                    raise ValueError(
                        f"prune_layers: {key} of layer {old} is {there.get(key)!r}, and would be {value!r} as layer "
                        f"{new}: keep layers whose settings are the same at their new index"
                    )


def _settings(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in layer.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, PLAIN) and not key.startswith("_") and key not in (*NUMBER, "training"):
                yield f"{path}.{key}".lstrip("."), value
