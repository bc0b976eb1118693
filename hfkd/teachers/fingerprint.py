"""Hashes of what a teacher's stored outputs depend on: its weights, configuration and code, and the rows."""

import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import torch
import xxhash
from accelerate.utils import align_module_device
from datasets import Dataset
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig

from hfkd.teachers.base import Teacher
from hfkd.teachers.code import code_hash, users_own
from hfkd.teachers.frozen import FrozenTeacher
from hfkd.utils.command import without_addresses

SAMPLED = 16  # values of each weight
SIZED = 1000  # number of files whose sizes are compared
WAITING = 10_000  # files that wait for a thread, of which each takes memory
HASHED_WHOLE = 2 << 30  # maximum size in bytes of Arrow data whose content is hashed
# Keys of a configuration that do not affect outputs: names, training, generation, and what the weights show.
WITHOUT_EFFECT = re.compile(
    r"dropout|pdrop|drop_path|layerdrop|initializer|_token_id|id2label|label2id|name_or_path|version|dtype|cache|"
    r"output_|return_dict|architectures|problem_type|tokenizer_class|_attn_implementation|attn_implementation|"
    r"quantization_config|task_specific_params|finetuning_task|_commit_hash|auto_map|gradient_checkpointing|"
    r"torchscript|label_names|pretrained_cfg"
)
# Norms as torch 2.11 describes them; 2.15 says whether they have a bias, which they usually have if they are affine.
WITHOUT_BIAS = re.compile(r"^(?!.*RMSNorm\()(.*affine=(True|False))(?!, bias=)", re.MULTILINE)
PLAIN = (bool, float, str)  # types of attributes that count as settings; not int, which may count calls or steps


def teacher_key(teacher: FrozenTeacher) -> str:
    """Cache key of a teacher: weights, configuration, the user's own code, and state outside of the state dict.

    Teachers with equal keys may still differ in library code: `hfkd.teachers.agreement` compares outputs.
    """
    digest = xxhash.xxh3_128(weights_fingerprint(teacher).encode())
    digest.update(json.dumps(configuration(teacher), sort_keys=True).encode())
    modules = list(teacher.model.modules())
    forwards = [vars(module).get("forward") for module in modules]
    hooks = [hook for m in modules for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    kinds = [type(module) for module in modules] + ([type(teacher)] if users_own(type(teacher)) else [])
    digest.update(code_hash(kinds, forwards, hooks).encode())
    for line in _transient(teacher.model):
        digest.update(line.encode())
    return digest.hexdigest()


def weights_fingerprint(teacher: Any) -> str:
    """A hash of all weights and buffers, the repr of the modules, and the normalisation of the inputs."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(teacher.model.state_dict().items()):
        digest.update(name.encode())
        elsewhere = isinstance(tensor, Tensor) and tensor.is_meta
        for part in _bytes(_offloaded(teacher.model, name) if elsewhere else tensor):
            digest.update(part)
    order = "" if teacher.order is None else str(teacher.order.tolist())
    digest.update(f"{_modules(teacher.model)}{teacher.received}{teacher.wanted}{order}".encode())
    return digest.hexdigest()


def _modules(model: nn.Module) -> str:
    """The repr of the modules (strides, activations: not visible in weights), the same in all versions of torch."""
    return WITHOUT_BIAS.sub(r"\1, bias=\2", without_addresses(repr(model)))


def sampled_weights(networks: Iterable[nn.Module]) -> Tensor:
    """A few values of each weight, which any training changes: a comparison that costs nothing beside the hash."""
    plain = [p.detach() for network in networks for p in network.parameters() if type(p) in (Tensor, nn.Parameter)]
    real = [p for p in plain if p.numel() and not (p.is_meta or p.is_complex() or p.is_quantized)]
    rows = [p[(0,) * (p.ndim - 1)].reshape(-1)[:SAMPLED].float().cpu() for p in real]
    return torch.cat([torch.empty(0), *rows])


def _offloaded(network: nn.Module, name: str) -> Tensor:
    """A weight that Accelerate loads when its layer runs (`device_map`), on the CPU."""
    path, _, own = name.rpartition(".")
    layer = network.get_submodule(path)
    with align_module_device(layer, torch.device("cpu")):
        return getattr(layer, own).detach().clone()


def _bytes(value: Any) -> Iterator[Any]:
    """Type and content of a tensor; other objects of quantized networks as they would be saved.

    A sharded tensor is gathered, so that every rank has to call this.
    """
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_quantized:
        yield f"{tuple(value.shape)}{value.dtype}".encode()
        yield value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        return
    buffer = io.BytesIO()
    torch.save(value, buffer)
    yield buffer.getvalue()


def configuration(teacher: Teacher) -> dict[str, Any]:
    """Settings that may change outputs (soft caps, scales, positions, ...), by dotted names; {} without a config."""
    found: dict[str, Any] = {}
    for number, network in enumerate(teacher.networks):
        config = getattr(network, "config", None)
        if isinstance(config, PreTrainedConfig):
            start = f"{number}." if len(teacher.networks) > 1 else ""
            settings = flat_settings(config)
            found |= {start + name: value for name, value in settings if not WITHOUT_EFFECT.search(name)}
    return found


def flat_settings(config: PreTrainedConfig) -> Iterator[tuple[str, Any]]:
    """All settings of a config, by dotted names."""
    return _flat(json.loads(json.dumps(config.to_dict(), default=str)))


def changed_setting(stored: Mapping[str, Any], mine: Mapping[str, Any], whose: str = "config") -> str | None:
    """Describe the first setting that both have with different values; a new library version may add settings."""
    for name in stored:
        if name in mine and stored[name] != mine[name]:
            return f"in its {whose} {name} is {stored[name]!r}, here it is {mine[name]!r}"
    return None


def data_fingerprint(dataset: Dataset) -> str:
    """A hash of the rows' content, or, for more than 2 GiB, of the `datasets` fingerprint.

    If rows have paths of files, it includes the files' sizes and modification times.
    """
    digest = _rows(dataset)
    for size, changed in _on_disk(file_paths(dataset)):
        digest.update(f"{size} {changed}".encode())
    return digest.hexdigest()


def rows_fingerprint(dataset: Dataset) -> str:
    """`data_fingerprint` that is the same for a copy of the files whose paths are in the rows.

    Of these it includes the names, below the folder that all are in, and the sizes of about a thousand of them.
    """
    files = file_columns(dataset)
    if not files:
        return _rows(dataset).hexdigest()
    paths = [os.path.abspath(path) for path in file_paths(dataset)]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    digest = _rows(dataset.with_format(None).remove_columns(files))
    for path in paths:
        digest.update(f"{os.path.relpath(path, root)}\0".encode())
    for size, _ in _on_disk(paths[:: max(1, len(paths) // SIZED)]):
        digest.update(f"{size} ".encode())
    return digest.hexdigest()


def _rows(dataset: Dataset) -> xxhash.xxh3_128:
    if dataset.data.table.nbytes > HASHED_WHOLE:
        return xxhash.xxh3_128(dataset._fingerprint.encode())
    digest = xxhash.xxh3_128(",".join(dataset.column_names).encode())
    for table in dataset.with_format("arrow").iter(batch_size=4096):
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest


def file_columns(dataset: Dataset) -> list[str]:
    """The columns that have paths of files, such as images, in the first row."""
    first = dataset.with_format("arrow")[:1].to_pylist()
    return [name for name, value in (first[0] if first else {}).items() if _is_file(value)]


def file_paths(dataset: Dataset) -> list[str]:
    """The paths in the `file_columns`."""
    found: list[str] = []
    for name in file_columns(dataset):
        for table in dataset.select_columns(name).with_format("arrow").iter(batch_size=65_536):
            values = table[name].combine_chunks()
            paths = values.field("path") if pa.types.is_struct(values.type) else values
            found += paths.drop_null().to_pylist()
    return found


def _is_file(value: Any) -> bool:
    if isinstance(value, dict) and value.get("bytes", value) is None:
        value = value.get("path")
    return isinstance(value, str) and os.sep in value and "\0" not in value and os.path.isfile(value)


def _on_disk(paths: list[str]) -> Iterator[tuple[int, int]]:
    """Size and modification time of each file, -1 if missing; in threads, for network file systems."""

    def look(path: str) -> tuple[int, int]:
        try:
            found = os.stat(path)
        except OSError:
            return -1, -1
        return found.st_size, found.st_mtime_ns

    with ThreadPoolExecutor(16) as threads:
        for start in range(0, len(paths), WAITING):
            yield from threads.map(look, paths[start : start + WAITING])


def _flat(settings: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{start}{name}.")
        else:
            yield start + str(name), value


def _transient(model: nn.Module) -> Iterator[str]:
    """State that is not in the state dict: non-persistent buffers, and tensors, floats, flags and strings of modules.

    Tensors with few digits, since rounding differs between machines.
    """
    stored = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name not in stored:
            yield f"{name} {_in_short(buffer)}"
    for place, module in model.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or name in ("training", "name_or_path", "gradient_checkpointing"):
                continue
            if isinstance(value, PLAIN):
                yield f"{place}.{name} {value!r}"
            elif isinstance(value, Tensor):
                yield f"{place}.{name} {_in_short(value)}"


def _in_short(tensor: Tensor) -> str:
    if not tensor.numel():
        return f"{tuple(tensor.shape)}"
    values = tensor.detach().flatten().cpu().double()
    numbers = (values.mean(), values.abs().mean(), values[0], values[-1])
    return f"{tuple(tensor.shape)} {' '.join(f'{float(number):.3g}' for number in numbers)}"
