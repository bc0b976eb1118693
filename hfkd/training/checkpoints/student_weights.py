"""The student's weights out of a checkpoint: all of them, or an error that names the first that are not there."""

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
    """Give `student` the weights in `folder`, of a model or of its adapters, as `save_pretrained` writes them.

    Raises ValueError, and changes nothing, where a tensor is missing, left over or of another shape. Of weights that
    share their memory a file may hold one.
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


def to_save(student: nn.Module) -> dict[str, Tensor] | None:
    """The state dict of a student that is no transformers model, as safetensors takes it: contiguous, nothing shared.

    Without the prefix of `torch.compile`, which no one who loads the file expects. None where `save_pretrained` knows.
    """
    network = extract_model_from_parallel(student, keep_torch_compile=False)
    if isinstance(network, PreTrainedModel) or _is_peft_model(network):
        return None if network is student else network.state_dict()
    seen: set[int] = set()
    tensors = {}
    for name, tensor in network.state_dict().items():
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format) if storage in seen else tensor.contiguous()
        seen.add(storage)
    return tensors


def trained_but_not_saved(student: nn.Module) -> list[str]:
    """What changes in training and is in no checkpoint: of a student with adapters, all outside of them.

    That is, parameters that somebody unfroze, and the running statistics of batch norms.
    """
    adapters = _adapters(student)
    if not adapters or any(config.is_prompt_learning for config in adapters.values()):
        return []  # of a prompt, what is saved is computed from its parameters
    from peft import get_peft_model_state_dict  # needed by those who ask for it only

    states = [get_peft_model_state_dict(student, adapter_name=name) for name in adapters]
    saved = {_place(tensor) for state in states for tensor in state.values()}
    changing = {name: p for name, p in student.named_parameters() if p.requires_grad} | {
        f"{name}.running_mean": norm.running_mean
        for name, norm in student.named_modules()
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None
    }
    aside = adapters.keys() | {"original_module"}  # an adapter's own are named after it; what it replaces stays unused
    return [name for name, t in changing.items() if not aside & set(name.split(".")) and _place(t) not in saved]


def _adapters(network: nn.Module) -> dict[str, Any]:
    """The PEFT adapters of a network that is saved by them alone, name: settings."""
    if _is_peft_model(network) or (isinstance(network, PreTrainedModel) and network._hf_peft_config_loaded):
        return cast(Any, network).peft_config
    return {}


def _load_adapters(student: nn.Module, folder: Path) -> None:
    from peft import load_peft_weights, set_peft_model_state_dict

    for name in _adapters(student):
        own_folder = folder / name if (folder / name).is_dir() else folder
        if not any((own_folder / file).exists() for file in (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME)):
            raise ValueError(f"{own_folder} has no weights of the student's adapter {name!r}: name another checkpoint")
        weights = load_peft_weights(str(own_folder), device="cpu")
        try:
            result: Any = set_peft_model_state_dict(student, weights, adapter_name=name)
            own, left_out = student.state_dict(keep_vars=True), set(result.missing_keys)
            loaded = {_place(tensor) for key, tensor in own.items() if key not in left_out}
            # neither those of the base model nor those that layers share
            missing = [key for key in left_out if name in key.split(".") and _place(own[key]) not in loaded]
            fault = {"missing": missing, "unexpected": result.unexpected_keys}
        except (KeyError, RuntimeError) as error:
            fault = {"cannot be loaded": [" ".join(str(error).split())]}
        if any(fault.values()):
            said = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in fault.items() if keys)
            raise ValueError(
                f"{own_folder} does not fit the student's adapter {name!r} ({said}): give the adapter the settings it "
                "was trained with, or name another checkpoint"
            )


def _weights_file(folder: Path) -> Path:
    """The file of the weights in `folder`, or the index of several."""
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(f"{folder} has no weights of the student: it has none of {list(names)}; name another one")
    return found


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".json":
        return read_state_dict(path)
    shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    return {name: tensor for shard in shards for name, tensor in read_state_dict(path.parent / shard).items()}


def _place(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    """Where a tensor lies: the same for weights that are tied."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _never_saved(network: nn.Module, name: str) -> bool:
    """Fixed tables, such as Marian's positions, which their model makes anew."""
    return isinstance(network, PreTrainedModel) and name in (network._keys_to_ignore_on_save or ())


def _check_shared(path: Path, weights: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raise ValueError where the file has two values for weights that the network holds once."""
    first: dict[Any, str] = {}
    for name, tensor in own.items():
        other = first.setdefault(_place(tensor), name)
        if other != name and not torch.equal(weights[other], weights[name]):
            raise ValueError(
                f"{path} has different values for {other} and {name}, which are one tensor in the student: build it "
                "as it was trained (tie_word_embeddings?), or name another checkpoint"
            )
