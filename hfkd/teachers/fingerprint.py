"""What stored numbers of a teacher depend on, as hashes: its weights, its configuration and code, and the rows."""

import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import torch
import xxhash
from datasets import Dataset
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig

from hfkd.teachers.base import Teacher
from hfkd.teachers.code import code_hash
from hfkd.teachers.frozen import FrozenTeacher
from hfkd.utils.command import without_addresses

HASHED_WHOLE = 2 << 30  # bytes of Arrow data up to which the content itself is hashed
# Keys of a configuration that change no output: names, training, generation, and what the weights tell themselves.
WITHOUT_EFFECT = re.compile(
    r"dropout|pdrop|drop_path|layerdrop|initializer|_token_id|id2label|label2id|name_or_path|version|dtype|cache|"
    r"output_|return_dict|architectures|problem_type|tokenizer_class|_attn_implementation|attn_implementation|"
    r"quantization_config|task_specific_params|finetuning_task|_commit_hash|auto_map|gradient_checkpointing|"
    r"torchscript|label_names|pretrained_cfg"
)
PLAIN = (bool, float, str)  # attributes that are read as settings; whole numbers count calls and steps as well


def teacher_key(teacher: FrozenTeacher) -> str:
    """For what is made anew where it differs: weights, configuration, the user's own code, and state in no checkpoint.

    Two teachers of equal keys may still differ in what a library does: `hfkd.teachers.agreement` looks at outputs.
    """
    digest = xxhash.xxh3_128(weights_fingerprint(teacher).encode())
    digest.update(json.dumps(configuration(teacher), sort_keys=True).encode())
    modules = list(teacher.model.modules())
    forwards = [vars(module).get("forward") for module in modules]
    hooks = [hook for m in modules for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    digest.update(code_hash([type(module) for module in modules], forwards, hooks).encode())
    for line in _transient(teacher.model):
        digest.update(line.encode())
    return digest.hexdigest()


def weights_fingerprint(teacher: Any) -> str:
    """A hash of every weight and buffer, the modules that hold them, and the inputs the teacher gets."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(teacher.model.state_dict().items()):
        digest.update(name.encode())
        for part in _bytes(tensor):
            digest.update(part)
    modules = without_addresses(repr(teacher.model))  # strides, activations: what no weight tells
    order = "" if teacher.order is None else str(teacher.order.tolist())
    digest.update(f"{modules}{teacher.received}{teacher.wanted}{order}".encode())
    return digest.hexdigest()


def _bytes(value: Any) -> Iterator[Any]:
    """A tensor's kind and content; what a quantized network keeps beside tensors as it would be saved.

    Of a sharded one the whole is read: every rank has to call it.
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
    """The settings that may change the outputs (soft caps, scales, positions, ...), by dotted names; {} without any."""
    found: dict[str, Any] = {}
    for number, network in enumerate(teacher.networks):
        config = getattr(network, "config", None)
        if isinstance(config, PreTrainedConfig):
            start = f"{number}." if len(teacher.networks) > 1 else ""
            settings = flat_settings(config)
            found |= {start + name: value for name, value in settings if not WITHOUT_EFFECT.search(name)}
    return found


def flat_settings(config: PreTrainedConfig) -> Iterator[tuple[str, Any]]:
    """All settings of a configuration, by dotted names."""
    return _flat(json.loads(json.dumps(config.to_dict(), default=str)))


def changed_setting(stored: Mapping[str, Any], mine: Mapping[str, Any], whose: str = "config") -> str | None:
    """The first setting that both have with different values, in words; a library's new version may add others."""
    for name in stored:
        if name in mine and stored[name] != mine[name]:
            return f"its {whose}'s {name} is {stored[name]!r}, this one's is {mine[name]!r}"
    return None


def data_fingerprint(dataset: Dataset) -> str:
    """A hash of the rows themselves, or of what `datasets` knows about their origin when they are many gigabytes.

    Where rows hold paths, the files' sizes and times too.
    """
    digest = _rows(dataset)
    for size, changed in _on_disk(file_paths(dataset)):
        digest.update(f"{size} {changed}".encode())
    return digest.hexdigest()


def rows_fingerprint(dataset: Dataset) -> str:
    """`data_fingerprint` without a look at files that rows name."""
    return _rows(dataset).hexdigest()


def _rows(dataset: Dataset) -> xxhash.xxh3_128:
    if dataset.data.table.nbytes > HASHED_WHOLE:
        return xxhash.xxh3_128(dataset._fingerprint.encode())
    digest = xxhash.xxh3_128(",".join(dataset.column_names).encode())
    for table in dataset.with_format("arrow").iter(batch_size=4096):
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest


def file_paths(dataset: Dataset) -> list[str]:
    """The files that rows name in place of holding what is in them: images, above all. The first row tells where."""
    first = dataset.with_format("arrow")[:1].to_pylist()
    found: list[str] = []
    for name in [name for name, value in (first[0] if first else {}).items() if _is_file(value)]:
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
    """Size and time of change of each file, -1 for one that is gone; many at once, for folders that are far away."""

    def look(path: str) -> tuple[int, int]:
        try:
            found = os.stat(path)
        except OSError:
            return -1, -1
        return found.st_size, found.st_mtime_ns

    with ThreadPoolExecutor(16) as threads:
        yield from threads.map(look, paths)


def _flat(settings: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{start}{name}.")
        else:
            yield start + str(name), value


def _transient(model: nn.Module) -> Iterator[str]:
    """State that no state dict holds: buffers that are not persistent, and modules' own tensors, numbers and words.

    Of tensors a few digits: another machine may round the last one otherwise.
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
    values = tensor.detach().flatten().double().cpu()
    numbers = (values.mean(), values.abs().mean(), values[0], values[-1])
    return f"{tuple(tensor.shape)} {' '.join(f'{float(number):.3g}' for number in numbers)}"
