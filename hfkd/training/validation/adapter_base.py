"""Refuses adapters on a base model that is not stored where they will look for it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import unwrap_peft_model
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hfkd.models.pruning import depths_of
from hfkd.models.sharing import changes_its_base
from hfkd.teachers.source import folder_of
from hfkd.utils.messages import some

ROWS = 4  # rows of each tensor that are compared: whatever changes a network changes some of them
ROUNDING = {"rtol": 2.0**-7, "atol": 1e-6}  # between float32, float16 and bfloat16
ADAPTED, REPLACED = "base_layer", "original_module"  # which PEFT puts into the names of the base model
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
REMEDY = "save the base model with save_pretrained, as it is now, and use that folder as the student"


def refuse_other_base(student: nn.Module) -> None:
    """Raise ValueError for a student with adapters whose other weights are not those stored under its base's name.

    Only the adapters are saved, with that name: loaded again, they would be put onto another network than the one that
    was trained, such as the teacher whose layers were pruned, or the base of an adapter that was merged.
    """
    for config in getattr(student, "peft_config", {}).values():
        _refuse_lost_start(config)
        name, base = config.base_model_name_or_path, unwrap_peft_model(student)
        folder = folder_of(name, config.revision) if name else None
        if folder is None or changes_its_base(config):  # and in the same way whenever PEFT adds the adapters
            continue
        files = _weight_files(folder)
        if not any(path.suffix in WEIGHTS for path in folder.iterdir()):
            raise ValueError(
                f"no weights of {name} are stored here, so that the student has random ones, without which its "
                f"adapters are saved: {REMEDY}"
            )
        if new := _random_heads(base, files):
            raise ValueError(
                f"{some(new)} of the student have random weights, as {name} has none for them, and are neither "
                "trained nor saved with the adapters: list their modules in modules_to_save of the PEFT configuration "
                "(its task_type does so for a classifier)"
            )
        if not (_as_deep(base, folder) and all(_equal(*both) for both in _compared(base, files))):
            raise ValueError(
                f"the student has other weights than {name}, onto which its adapters would be loaded, as these alone "
                f"are saved (has it been pruned, merged or initialised anew?): {REMEDY}"
            )


def adapted_layers(network: nn.Module) -> list[str]:
    """The names of the layers that have adapters of PEFT, which are put into the network itself."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # optional dependency

    return [name for name, part in network.named_modules() if isinstance(part, BaseTunerLayer)]


def refuse_left_adapters(before: Sequence[str], adapted: Any) -> None:
    """Raise ValueError if a student got adapters, but has others on layers, of those `before`, that these are not on.

    As after another trainer, which may have ended in an error: PEFT would train both, and save the new ones alone.
    """
    tuner = adapted.base_model
    now = {*getattr(tuner, "targeted_module_names", ())}
    now |= {name.rpartition(".")[0] for name in getattr(tuner, "targeted_parameter_names", ())}
    if left := [name for name in before if name not in now]:
        raise ValueError(
            f"the student still has adapters of another PEFT configuration, on {some(left)}, which would train and not "
            "be saved with those of peft_config: load the student anew, or take them off with the model that has them "
            "(student = trainer.model.unload(), or merge_and_unload())"
        )


def _as_deep(base: Any, folder: Path) -> bool:
    """Whether the stored model has as many layers: of a student of the first ones all weights are there."""
    if not isinstance(base, PreTrainedModel) or not (folder / "config.json").exists():
        return True
    return depths_of(type(base.config).from_pretrained(folder)) == depths_of(base.config)


def _equal(own: Tensor, stored: Tensor) -> bool:
    return torch.allclose(own.float(), stored.to(own).float(), **ROUNDING, equal_nan=True)


def _refuse_lost_start(config: Any) -> None:
    """Raise ValueError for an initialisation that takes the adapters' start out of the base model, and is not repeated.

    Namely the randomised SVD of PiSSA, and CorDA and LoRA-GA, which read data: when the adapters are loaded, the base
    model has other weights than in training.
    """
    start = getattr(config, "init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(("pissa_niter", "corda", "lora_ga")):
        raise ValueError(
            f"init_lora_weights={start!r} changes the base model's weights, in a way that is not repeated when the "
            "adapters, which alone are saved, are loaded or resumed: the student would be another one. Use 'pissa' "
            "(the exact decomposition), 'olora', 'eva' or the default"
        )


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model; none for weights in another format."""
    if (folder / SAFE_WEIGHTS_NAME).exists():
        return [folder / SAFE_WEIGHTS_NAME]
    if not (index := folder / SAFE_WEIGHTS_INDEX_NAME).exists():
        return []
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return sorted(path for name in set(names) if (path := folder / name).exists())


def _in_file(name: str) -> str:
    """The name of a tensor of the base model before PEFT changed it."""
    return ".".join(part for part in name.split(".") if part not in (ADAPTED, REPLACED))


def _random_heads(base: Any, files: list[Path]) -> list[str]:
    """Names of frozen parameters outside of the base model proper that the files do not have, under any prefix."""
    stored = {name for file in files for name, _ in _tensors(file)}
    tied = {tensor.data_ptr() for name, tensor in base.named_parameters(remove_duplicate=False) if _inner(base, name)}
    return [
        _in_file(name)
        for name, tensor in base.named_parameters()
        if not (tensor.requires_grad or _inner(base, name) or REPLACED in name.split("."))
        and stored
        and tensor.data_ptr() not in tied
        and not any(one.endswith(_in_file(name)) for one in stored)
    ]


def _inner(base: Any, name: str) -> bool:
    return name.startswith(f"{getattr(base, 'base_model_prefix', '')}.")


def _compared(base: Any, files: list[Path]) -> Iterator[tuple[Tensor, Tensor]]:
    """The first rows of each tensor of the network that the files have by its name and shape."""
    prefix, own = f"{getattr(base, 'base_model_prefix', '')}.", dict[str, Tensor]()
    for name, tensor in base.state_dict().items():
        own |= {_in_file(name).removeprefix(prefix): tensor, _in_file(name): tensor}
    for file in files:
        for name, part in _tensors(file):
            tensor = own.get(name)
            if tensor is None or tensor.is_meta or not tensor.ndim or not tensor.is_floating_point():
                continue
            if part.get_shape() == list(tensor.shape):
                yield tensor[:ROWS], part[:ROWS]


def _tensors(file: Path) -> Iterator[tuple[str, Any]]:
    with safe_open(file, framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118  # it is no dict
            yield name, stored.get_slice(name)
