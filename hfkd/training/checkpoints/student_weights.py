"""Loads the student's weights from a checkpoint: all of them, or an error that names the missing ones."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.trainer_utils import _is_peft_model
from transformers.utils import (
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from hfkd.models.checkpoints import check_fit, read_state_dict
from hfkd.models.conversion import as_in_network


def load_student(student: nn.Module, folder: str | Path) -> None:
    """Load the weights in `folder`, of a model or of its adapters, as `save_pretrained` writes them, into `student`.

    Raises ValueError, and changes nothing, if a tensor is missing, unexpected or of another shape. Of tied weights the
    file may hold just one.
    """
    network = extract_model_from_parallel(student, keep_torch_compile=False)
    if _adapters(network):
        _load_adapters(network, Path(folder))
        return
    path, own = _weights_file(Path(folder)), network.state_dict(keep_vars=True)
    weights = as_in_network(network, _read(path))
    loaded = {_place(own[name]): tensor for name, tensor in weights.items() if name in own}
    for name in own.keys() - weights.keys():
        if _place(own[name]) in loaded:
            weights[name] = loaded[_place(own[name])]
        elif _never_saved(network, name) and not own[name].requires_grad:
            weights[name] = own[name].detach()
    check_fit(path, network, weights, own)
    _check_shared(path, weights, own)
    network.load_state_dict(weights, strict=True)


def to_save(student: nn.Module, gathered: dict[str, Tensor] | None = None) -> dict[str, Tensor] | None:
    """State dict of a student that is not a transformers model, as safetensors requires: contiguous, no shared memory.

    gathered: what FSDP or DeepSpeed give on this rank. Names are without the prefix of `torch.compile`. None if
    `save_pretrained` writes the right weights by itself.
    """
    network = extract_model_from_parallel(student, keep_torch_compile=False)
    if isinstance(network, PreTrainedModel) or _is_peft_model(network):
        return gathered if gathered is not None or network is student else network.state_dict()
    seen: set[int] = set()
    tensors = {}
    for name, tensor in (network.state_dict() if gathered is None else gathered).items():
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format) if storage in seen else tensor.contiguous()
        seen.add(storage)
    return tensors


def trained_but_not_saved(student: nn.Module) -> list[str]:
    """Names of tensors that change in training but are not saved: with adapters, all that is outside of these.

    Namely trainable parameters of the base model, and the running statistics of batch norms.
    """
    adapters = _adapters(student)
    if not adapters or any(config.is_prompt_learning for config in adapters.values()):
        return []  # what is saved of a prompt is computed from its parameters
    from peft import get_peft_model_state_dict  # optional dependency

    states = [get_peft_model_state_dict(student, adapter_name=name) for name in adapters]
    saved = {_place(tensor) for state in states for tensor in state.values()}
    changing = {name: p for name, p in student.named_parameters() if p.requires_grad} | {
        f"{name}.running_mean": norm.running_mean
        for name, norm in student.named_modules()
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None
    }
    aside = adapters.keys() | {"original_module"}  # an adapter's tensors are named after it; replaced ones are unused
    return [name for name, t in changing.items() if not aside & set(name.split(".")) and _place(t) not in saved]


def trained_adapters(student: nn.Module) -> list[nn.Parameter]:
    """The parameters of a student's adapters, without whole layers that are trained beside them (modules_to_save)."""
    adapters = _adapters(student)
    return [
        parameter
        for name, parameter in student.named_parameters()
        if "modules_to_save" not in (parts := name.split(".")) and adapters.keys() & set(parts)
    ]


def _adapters(network: nn.Module) -> dict[str, Any]:
    """The PEFT adapters, {name: config}, of a network of which only the adapters are saved; else {}."""
    if _is_peft_model(network) or (isinstance(network, PreTrainedModel) and network._hf_peft_config_loaded):
        return cast(Any, network).peft_config
    return {}


def _load_adapters(student: nn.Module, folder: Path) -> None:
    from peft import load_peft_weights, set_peft_model_state_dict

    for name, config in _adapters(student).items():
        own_folder = folder / name if (folder / name).is_dir() else folder
        if not any((own_folder / file).exists() for file in (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME)):
            raise ValueError(
                f"{own_folder} has no weights for the student's adapter {name!r}: choose another checkpoint"
            )
        weights = load_peft_weights(str(own_folder), device="cpu")
        try:
            result: Any = set_peft_model_state_dict(student, weights, adapter_name=name)
            own, left_out = student.state_dict(keep_vars=True), set(result.missing_keys)
            loaded = {_place(tensor) for key, tensor in own.items() if key not in left_out}
            # neither those of the base model nor tied ones
            missing = [key for key in left_out if name in key.split(".") and _place(own[key]) not in loaded]
            fault = {"missing": missing, "unexpected": result.unexpected_keys}
            if config.is_prompt_learning:
                fault = _without_prompt(fault, name)
        except (KeyError, RuntimeError) as error:
            fault = {"cannot be loaded": [" ".join(str(error).split())]}
        if any(fault.values()):
            said = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in fault.items() if keys)
            prompt = " (of a prompt that an encoder computes PEFT saves the result alone: it cannot be trained further)"
            raise ValueError(
                f"{own_folder} does not fit the student's adapter {name!r} ({said}): use the adapter settings it "
                f"was trained with, or choose another checkpoint{prompt * config.is_prompt_learning}"
            )


def _without_prompt(keys: dict[str, list[str]], adapter: str) -> dict[str, list[str]]:
    """The keys without those of a prompt: its file has them under other names, and PEFT reports these as faults.

    What remains are other parts of the prompt's encoder, such as the MLP of P-tuning, which PEFT does not save.
    """
    in_file, own = ("prompt_embeddings", "prefix_task_cols", "prefix_task_rows"), f"prompt_encoder.{adapter}."
    in_model = {f"{own}{name}" for name in ("embedding.weight", *in_file[1:])}
    return {
        "missing": [key for key in keys["missing"] if key not in in_model],
        "unexpected": [key for key in keys["unexpected"] if key not in in_file],
    }


def _weights_file(folder: Path) -> Path:
    """The weights file in `folder`, or the index of a sharded one."""
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"{folder} has no weights of the student: none of {list(names)} exists there; choose another checkpoint"
        )
    return found


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".json":
        return read_state_dict(path)
    shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    return {name: tensor for shard in shards for name, tensor in read_state_dict(path.parent / shard).items()}


def _place(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    """Identity of a tensor's memory: the same for tied weights."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _never_saved(network: nn.Module, name: str) -> bool:
    """Whether it is a fixed table, such as Marian's positions, that the model recomputes and never saves."""
    return isinstance(network, PreTrainedModel) and name in (network._keys_to_ignore_on_save or ())


def _check_shared(path: Path, weights: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raise ValueError if the file has different values for weights that are tied in the network."""
    first: dict[Any, str] = {}
    for name, tensor in own.items():
        other = first.setdefault(_place(tensor), name)
        if other != name and not torch.equal(weights[other], weights[name]):
            raise ValueError(
                f"{path} has different values for {other} and {name}, which are tied in the student: build the "
                "student as it was trained (see tie_word_embeddings), or choose another checkpoint"
            )
