"""Feature keys: names of the inner layers of networks.

    2, "2"        the output of stage k; 0 is the stem, or the embeddings; -1 is the last stage
    "1:"          all stages from k on
    "pre:2"       stage k before its last activation; "pre:1:" all of these from k on
    "pooled"      the input of the last linear layer
    "logits"      the output of the network, at its own resolution
    "attention:2" query, key and value of attention block k
    "a.b.c"       the output of a module, by its path; "a.b.c:in" its input

Stages are defined in `hfkd.models.stages`.
"""

import re
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

Layer = int | str
Layers = tuple[Layer, ...]
LayerMap = dict[Layer, Layer]  # {student layer: teacher layer}

STAGE = re.compile(r"(?P<kind>(?:pre|attention):)?(?P<index>-?[0-9]+)(?P<onwards>:)?")
PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*(:in)?")


def feature_key(layer: Layer) -> str:
    """The normalised key of a layer, a string. Raises ValueError for an invalid key."""
    key = str(int(layer)) if isinstance(layer, Integral) and not isinstance(layer, bool) else layer
    stage = isinstance(key, str) and STAGE.fullmatch(key)
    if stage:
        return f"{stage['kind'] or ''}{int(stage['index'])}{stage['onwards'] or ''}"
    if not isinstance(key, str) or not PATH.fullmatch(key):
        raise ValueError(
            f"layer {layer!r} is not a valid layer: pass a stage (2, 'pre:2', 'attention:2', '1:' for all from 1 on), "
            "'pooled', 'logits', or a module's path ('layer2.0.conv1', or 'layer2.0.conv1:in' for its input)"
        )
    return key


def feature_keys(layers: Layer | Iterable[Layer]) -> tuple[str, ...]:
    """The keys of one or several layers, in order."""
    several: Any = [layers] if isinstance(layers, (str, Integral)) else layers
    return tuple(map(feature_key, several))


def paired_keys(
    layers: Layer | Layers | LayerMap, teacher_layers: Layer | Layers | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys of the student's and the teacher's layers, which are the same if `teacher_layers` is None.

    Raises ValueError for a map together with `teacher_layers`, an empty map, or one with the same layer twice.
    """
    if not isinstance(layers, Mapping):
        mine = feature_keys(layers)
        return mine, mine if teacher_layers is None else feature_keys(teacher_layers)
    mine = feature_keys(layers.keys())
    if teacher_layers is not None:
        raise ValueError(
            f"layers={layers!r} already maps the student's layers to the teacher's, but "
            f"teacher_layers={teacher_layers!r} is set too: leave one out"
        )
    if not mine or len(set(mine)) != len(mine):
        raise ValueError(f"layers={layers!r} must name one or more of the student's layers, each once")
    return mine, feature_keys(layers.values())


def stages_of(key: str) -> tuple[str, int, bool] | None:
    """("" or "pre:" or "attention:", k, whether all stages from k on are meant); None for a key that is not a stage."""
    found = STAGE.fullmatch(key)
    return found and (found["kind"] or "", int(found["index"]), bool(found["onwards"]))
