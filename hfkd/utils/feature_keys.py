"""How an inner layer of a network is named: feature keys.

    2, "2"        the output of stage k; 0 is the stem, or the embeddings; -1 is the last stage
    "1:"          every stage from k on, as many as the network has
    "pre:2"       stage k before its last activation; "pre:1:" every one from k on
    "pooled"      what the last linear layer reads
    "logits"      what the network gives, at its own resolution
    "attention:2" query, key and value of attention block k
    "a.b.c"       the output of a module, by its path; "a.b.c:in" its input

What stages are is for `hfkd.models.stages` to say.
"""

import re
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

Layer = int | str
Layers = tuple[Layer, ...]
LayerMap = dict[Layer, Layer]  # {the student's: the teacher's}

STAGE = re.compile(r"(?P<kind>(?:pre|attention):)?(?P<index>-?[0-9]+)(?P<onwards>:)?")
PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*(:in)?")
WHOLE = ("pooled", "logits")


def feature_key(layer: Layer) -> str:
    """The key of a layer as it is written everywhere: a string. Raises ValueError for what names no layer."""
    key = str(int(layer)) if isinstance(layer, Integral) and not isinstance(layer, bool) else layer
    stage = isinstance(key, str) and STAGE.fullmatch(key)
    if stage:
        return f"{stage['kind'] or ''}{int(stage['index'])}{stage['onwards'] or ''}"
    if not isinstance(key, str) or not PATH.fullmatch(key):
        raise ValueError(
            f"layer {layer!r} names no layer: give a stage (2, 'pre:2', 'attention:2', '1:' for all from 1 on), "
            "'pooled', 'logits', or a module's path ('layer2.0.conv1', or 'layer2.0.conv1:in' for its input)"
        )
    return key


def feature_keys(layers: Layer | Iterable[Layer]) -> tuple[str, ...]:
    """Those of one layer or several, in order."""
    several: Any = [layers] if isinstance(layers, (str, Integral)) else layers
    return tuple(map(feature_key, several))


def paired_keys(
    layers: Layer | Layers | LayerMap, teacher_layers: Layer | Layers | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys of the student's layers and of the teacher's, which are the same where `teacher_layers` is None.

    Raises ValueError for a map together with `teacher_layers`, an empty one, and one that names a layer twice.
    """
    if not isinstance(layers, Mapping):
        mine = feature_keys(layers)
        return mine, mine if teacher_layers is None else feature_keys(teacher_layers)
    mine = feature_keys(layers.keys())
    if teacher_layers is not None:
        raise ValueError(
            f"layers={layers!r} says already which of the teacher's layer goes with each, and "
            f"teacher_layers={teacher_layers!r} says it again: leave one out"
        )
    if not mine or len(set(mine)) != len(mine):
        raise ValueError(f"layers={layers!r} must name one or more of the student's layers, each once")
    return mine, feature_keys(layers.values())


def stages_of(key: str) -> tuple[str, int, bool] | None:
    """("" or "pre:" or "attention:", k, whether all from k on are meant); None for a key that names no stage."""
    found = STAGE.fullmatch(key)
    return found and (found["kind"] or "", int(found["index"]), bool(found["onwards"]))
