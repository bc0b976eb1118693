"""A check that the output folder is not among the inputs of a run, which it would overwrite."""

import os
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import timm
from torch import nn
from transformers import PreTrainedConfig

DATASETS = ("dataset_name", "dolly", "sets_from")
# The settings of recipes that name inputs of a run.
INPUTS = (
    *DATASETS,
    *("network_name", "model_name_or_path", "student_name", "student_name_or_path", "peer_names", "chain"),
    *("teacher_name", "teacher_name_or_path", "teachers", "tokenizer_name"),
    *("teacher", "students", "checkpoints_of"),
    *("checkpoint", "student_checkpoint", "student_checkpoints", "teacher_checkpoint"),
    *("teacher_cache_dir", "scan_cache_dir"),
)
# What a run overwrites or deletes in its output folder.
WRITTEN = ("checkpoint-*", "_unfinished", "peer_*", "dev", "*.safetensors", "*.bin")


def refuse_inputs_as_output(settings: Mapping[str, Any]) -> None:
    """`refuse_inputs` for all settings of a command, unless it only evaluates."""
    if "output_dir" in settings and not settings.get("evaluate_only"):
        refuse_inputs(settings["output_dir"], settings)


def refuse_inputs(output_dir: str | None, settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a run that writes to `output_dir` would damage an input in its `settings`.

    This includes the folder itself, also through links; a file or folder in it that the run overwrites; a checkpoint of
    a run that is an input; and a folder inside that of a dataset, from which a later run would read the files of this
    one.
    """
    output = Path(output_dir or ".").expanduser().resolve()
    for name in INPUTS:
        value = settings.get(name)
        for one in value if isinstance(value, list) else [value]:
            if one and on_this_machine(str(one)) and (harm := _harm(output, Path(one).expanduser(), name in DATASETS)):
                said = harm.format(output=f"output_dir={output_dir}", given=f"{name}={one}")
                raise ValueError(f"{said}; choose another output_dir")


def refuse_networks(output_dir: str | None, networks: Mapping[str, Any], tokenizer: Any) -> None:
    """`refuse_inputs` for loaded networks and a tokenizer, by the folders they were loaded from."""
    for name, network in networks.items():
        if isinstance(network, nn.Module):  # not a cached teacher, which is only read
            refuse_inputs(output_dir, {f"{name}_name": sorted(_folders(network))})
    refuse_inputs(output_dir, {"tokenizer_name": getattr(tokenizer, "name_or_path", None)})


def _folders(network: nn.Module) -> set[str]:
    """The folders from which the network, or its submodules, were loaded."""
    configs = (vars(module).get("config") for module in network.modules())
    return {config.name_or_path for config in configs if isinstance(config, PreTrainedConfig) and config.name_or_path}


def on_this_machine(name: str) -> bool:
    """Whether a setting names a local file or folder; the name of a timm architecture is not taken for a folder."""
    architecture = os.sep not in name and timm.is_model(name)
    path = Path(name).expanduser()
    return not architecture and (path.is_file() or (path.is_dir() and any(path.iterdir())))


def _harm(output: Path, given: Path, data: bool) -> str | None:
    """The harm to an input as a sentence with two placeholders; None if there is none."""
    inside = {given.resolve(), given.parent.resolve() / given.name}  # the target of a link, and the link itself
    if output in inside:
        return "{output} is the folder of {given}, which the run would overwrite"
    if any(path.is_relative_to(output) and _written(path.relative_to(output)) for path in inside):
        return "{given} is in {output}, where the run would overwrite it"
    if given.is_dir() and output.is_relative_to(given.resolve()):
        part = output.relative_to(given.resolve())
        if _written(part):
            return "{output} is a part of {given}, which the run would overwrite"
        if data and not any(given.glob("*.jsonl")):  # from such a folder only these files are read
            return "{output} is inside {given}, so that a later run would read the files of this one as data"
    return None


def _written(path: Path) -> bool:
    return any(fnmatch(path.parts[0], pattern) for pattern in WRITTEN)
