"""What determines a student's outputs besides its weights: its configuration, and the repr of its layers."""

import re
from typing import Any

import xxhash
from torch import nn
from transformers import PreTrainedConfig

from hfkd.models.calling import bare
from hfkd.teachers.fingerprint import WITHOUT_EFFECT, flat_settings
from hfkd.utils.command import without_addresses

DROPS = re.compile(r"\w*drop\w*\(", re.IGNORECASE)


def student_config(student: nn.Module) -> dict[str, Any]:
    """Settings of the student's config that may change its outputs, by dotted names; {} without a config."""
    config = getattr(bare(student), "config", None)
    if not isinstance(config, PreTrainedConfig):
        return {}
    return {name: value for name, value in flat_settings(config) if not WITHOUT_EFFECT.search(name)}


def student_layers(student: nn.Module) -> dict[str, Any]:
    """kinds: the distinct reprs of its layers (strides, activations, ...). places: a hash of layers and their names.

    Dropout, and Identity in its place, is left out: it may change when a run is resumed (`dropout_of`).
    """
    found = described_layers(student)
    places = xxhash.xxh3_128("\n".join(f"{name} {text}" for name, text in found.items()).encode())
    return {"kinds": sorted(set(found.values())), "places": places.hexdigest()}


def described_layers(student: nn.Module) -> dict[str, str]:
    """The repr of each layer by its name, without dropout, and Identity in its place."""
    return {name: text for name, text in _layers(student) if not (DROPS.match(text) or text == "Identity()")}


def changed_layers(there: dict[str, Any], here: dict[str, Any]) -> str | None:
    """A description of the layers in which two students differ; None if they do not."""
    if there["places"] == here["places"]:
        return None
    missing, more = (sorted(set(one["kinds"]) - set(other["kinds"])) for one, other in ((there, here), (here, there)))
    if not missing and not more:
        return "its student has the same layers in other places"
    return (
        f"its student has {', '.join(missing) or 'no such layer'}, that of this run {', '.join(more) or 'none of them'}"
    )


def dropout_of(student: nn.Module) -> list[str]:
    """The distinct dropout layers, and the settings of the config about dropout."""
    config = getattr(bare(student), "config", None)
    settings = flat_settings(config) if isinstance(config, PreTrainedConfig) else ()
    said = {f"{name}={value}" for name, value in settings if "drop" in name and value}
    return sorted({text for _, text in _layers(student) if DROPS.match(text)} | said)


def _layers(student: nn.Module) -> list[tuple[str, str]]:
    modules = bare(student).named_modules()
    return [(name, without_addresses(repr(part))) for name, part in modules if next(part.children(), None) is None]
