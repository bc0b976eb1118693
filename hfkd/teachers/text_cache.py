"""A language teacher's outputs on disk: per target token its k largest logits, and what makes the rest exact.

N target tokens, V vocabulary, k stored classes, S temperatures.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
import xxhash
from accelerate import Accelerator
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from torch import Tensor, nn
from tqdm.auto import tqdm

from hfkd import signals
from hfkd.coarse import tail
from hfkd.data.text_collate import TokenCollator
from hfkd.data.token_rows import OWN_COLUMNS
from hfkd.files import write_atomically
from hfkd.items import TOKENS
from hfkd.known_heads import refuse_other_heads
from hfkd.own_loss import compare_own_loss
from hfkd.packing import PackingCheck
from hfkd.slot_types import Temperature, fitting
from hfkd.targets import Targets
from hfkd.teachers.live import LiveTeacher
from hfkd.teachers.scan import data_fingerprint, weights_fingerprint

logger = logging.getLogger(__name__)

MANIFEST = "teacher_cache.json"
REVISION = 1  # of what is stored, and how


@dataclass(frozen=True)
class Manifest:
    """What a cache was made from, and how. Two caches with equal manifests hold the same numbers."""

    teacher: str  # a hash of its weights
    data: str  # a hash of the tokenised rows
    rows: int
    num_classes: int
    k: int
    temperatures: tuple[float, ...]
    entropy_temperature: float
    energy_temperature: float
    dtype: str
    precision: str
    shard_rows: int
    name: str = ""  # the teacher's, for people
    revision: int = REVISION

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest | None":
        """The manifest in `folder`, None where there is none. ValueError for one that this version cannot read."""
        path = Path(folder) / MANIFEST
        try:
            values = json.loads(path.read_text())
            manifest = cls(**values | {"temperatures": tuple(values["temperatures"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no teacher cache of this version ({error}): delete the folder") from error
        if manifest.revision != REVISION:
            raise ValueError(
                f"{path} is of revision {manifest.revision}, not {REVISION}: delete the folder, build anew"
            )
        return manifest

    def claim(self, folder: str | Path, accelerator: Accelerator | None) -> None:
        """Write it into `folder`. ValueError on every rank when the folder holds a cache of something else."""
        other = Manifest.read(folder)
        for name, value in asdict(other).items() if other else ():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{folder} holds another teacher cache: its {name} is {value!r}, this one's is "
                    f"{getattr(self, name)!r}; choose another folder, or delete that one"
                )
        if accelerator is not None:
            accelerator.wait_for_everyone()  # all have read what was there
        if other is None and (accelerator is None or accelerator.is_main_process):
            write_atomically(Path(folder) / MANIFEST, json.dumps(asdict(self), indent=2).encode())

    @property
    def shards(self) -> list[str]:
        return [f"shard-{number:05d}.arrow" for number in range(math.ceil(self.rows / self.shard_rows))]

    def missing(self, folder: str | Path) -> list[str]:
        """The shards that are not there, or not whole."""
        return [shard for shard in self.shards if not sound(Path(folder) / shard)]

    @property
    def has_tail(self) -> bool:
        """Whether there are classes besides the k."""
        return self.k < self.num_classes

    @property
    def bytes_per_token(self) -> int:
        return bytes_per_token(self.k, self.num_classes, self.dtype, len(self.temperatures))

    @property
    def features(self) -> Features:
        """One row an example; each column but the first two a flat list over its N target tokens."""
        numbers = {name: List(Value("float32")) for name in ("tails", "entropy", "energy", "logsumexp")}
        ids = List(Value("uint16" if self.num_classes <= 2**16 else "int32"))
        key = {"index": Value("int64"), "tokens": Value("string")}
        return Features(key | {"ids": ids, "logits": List(Value(self.dtype))} | numbers)


def build_text_cache(
    teacher: nn.Module,
    dataset: Dataset,
    folder: str | Path,
    *,
    k: int = 64,
    temperatures: float | Sequence[float] = 2.0,
    entropy_temperature: float = 3.0,
    energy_temperature: float = 4.0,
    num_classes: int | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    batch_size: int = 8,
    shard_rows: int = 512,
    accelerator: Accelerator | None = None,
    name: str = "",
    progress_bar: bool = True,
) -> None:
    """Run `teacher` once over the tokenised rows (`tokenize_dataset`) and store what training needs of it.

    Per target token: the k largest logits (less the largest, in `dtype`) and their ids; in float32 the entropy at T',
    the energy at T_E, the logsumexp, and for each of `temperatures` the logsumexp over all other classes, which makes
    the last of k + 1 buckets exact there. Temperatures that training may use must be among them: (2, 4, 6) for
    `energy` around 4. `num_classes` cuts the logits to the student's vocabulary where the teacher's is padded further.

    A row is found again by its `index` and a hash of its tokens. Files of `shard_rows` rows, shared out over the ranks
    of `accelerator`, each written whole or not at all: called again after a kill, only the missing ones are made.
    Raises ValueError when the folder holds another teacher's, data's or setting's cache, for rows without a unique
    `index`, for a teacher that gives NaN or infinity, and for one that does not predict the token after its place.
    """
    temperatures = (temperatures,) if isinstance(temperatures, (int, float)) else tuple(temperatures)
    for value in (entropy_temperature, energy_temperature, *temperatures):
        fitting("build_text_cache", "temperature", value, Temperature)
    _check(dataset, k, temperatures, dtype, batch_size, shard_rows)
    live = teacher if isinstance(teacher, LiveTeacher) else LiveTeacher(teacher).unfreeze()
    refuse_other_heads(live.networks, TOKENS)
    for network in live.networks:
        compare_own_loss(network, None, TOKENS)
    vocabulary = _vocabulary(live, num_classes)
    manifest = Manifest(
        teacher=weights_fingerprint(live),
        data=data_fingerprint(dataset),
        rows=len(dataset),
        num_classes=vocabulary,
        k=min(k, vocabulary),
        temperatures=tuple(map(float, temperatures)),
        entropy_temperature=float(entropy_temperature),
        energy_temperature=float(energy_temperature),
        dtype=dtype,
        precision=accelerator.mixed_precision if accelerator else "no",
        shard_rows=shard_rows,
        name=name,
    )
    manifest.claim(folder, accelerator)
    rank, ranks = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    absent = set(manifest.missing(folder))
    missing = [i for i, shard in enumerate(manifest.shards) if i % ranks == rank and shard in absent]
    _announce(manifest, dataset, len(missing))
    for number in tqdm(
        missing, desc="Storing the teacher's outputs", disable=not progress_bar or rank > 0, leave=False
    ):
        rows = dataset.select(range(number * shard_rows, min((number + 1) * shard_rows, len(dataset))))
        with live.frozen():
            columns = _shard(live, [dict(row) for row in rows], manifest, batch_size)
        _write(Path(folder) / manifest.shards[number], columns, manifest.features)
    if accelerator is not None:
        accelerator.wait_for_everyone()


def bytes_per_token(k: int, num_classes: int, dtype: str = "float16", temperatures: int = 1) -> int:
    """What a target token takes: k ids and logits, and in float32 entropy, energy, logsumexp and the buckets."""
    ids, logits = 2 if num_classes <= 2**16 else 4, np.dtype(dtype).itemsize
    return k * (ids + logits) + 4 * (3 + (temperatures if k < num_classes else 0))


def sound(shard: Path) -> bool:
    """Whether the file is there and whole: an Arrow stream that a copy cut short has no end."""
    try:
        with pa.memory_map(str(shard)) as source:
            return sum(batch.num_rows for batch in pa.ipc.open_stream(source)) > 0
    except (OSError, pa.ArrowInvalid):
        return False


def tokens_hash(row: Mapping[str, Any]) -> str:
    """What a row's outputs depend on: its tokens, which of them are targets, and what each of them may see."""
    digest = xxhash.xxh3_64()
    for name in ("input_ids", "labels"):
        digest.update(np.asarray(row[name], dtype=np.int64).tobytes())
    for name in (name for name in OWN_COLUMNS if row.get(name) is not None):
        digest.update(name.encode() + np.asarray(row[name], dtype=np.int64).tobytes())
    return digest.hexdigest()


def _check(dataset: Any, k: int, temperatures: Sequence[float], dtype: str, batch_size: int, shard_rows: int) -> None:
    for name, value in (("k", k), ("batch_size", batch_size), ("shard_rows", shard_rows)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"build_text_cache: {name}={value!r} must be a whole number above 0")
    if not temperatures or len(set(temperatures)) != len(temperatures):
        raise ValueError(f"build_text_cache: temperatures={temperatures!r} must be one or more different numbers")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"build_text_cache: dtype={dtype!r} must be 'float16' or 'float32'")
    if not isinstance(dataset, Dataset) or not {"input_ids", "labels", "index"} <= set(dataset.column_names):
        raise ValueError("a teacher cache is of a dataset with input_ids, labels and index: use tokenize_dataset")
    index = np.asarray(dataset.with_format("numpy")["index"][:])
    if len(index) == 0 or len(np.unique(index)) != len(index):
        raise ValueError(f"the column index names {len(np.unique(index))} of {len(index)} rows: it must name each once")


@torch.no_grad()
def _vocabulary(teacher: LiveTeacher, num_classes: int | None) -> int:
    device = next(teacher.parameters()).device
    given = teacher(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device)).shape[-1]
    if num_classes is not None and not 1 <= num_classes <= given:
        raise ValueError(f"build_text_cache: num_classes={num_classes} must be within the teacher's {given} logits")
    return num_classes or given


def _announce(manifest: Manifest, dataset: Dataset, missing: int) -> None:
    lengths = sum(int((np.asarray(labels[1:]) != -100).sum()) for labels in dataset.with_format("numpy")["labels"])
    size = lengths * manifest.bytes_per_token
    logger.info(
        "The teacher cache takes %.1f MB: %d target tokens of %d bytes; %d of %d files are to be made here",
        size / 1e6,
        lengths,
        manifest.bytes_per_token,
        missing,
        len(manifest.shards),
    )


@torch.no_grad()
def _shard(
    teacher: LiveTeacher, rows: list[dict[str, Any]], manifest: Manifest, batch_size: int
) -> dict[str, list[Any]]:
    """The columns of some rows. Rows of similar length go through the teacher together."""
    collate, device, check = TokenCollator(0), next(teacher.parameters()).device, PackingCheck(teacher.networks)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    found: list[dict[str, Any]] = [{"index": row["index"], "tokens": tokens_hash(row)} for row in rows]
    for start in range(0, len(rows), batch_size):
        numbers = by_length[start : start + batch_size]
        batch = {key: v.to(device) for key, v in collate([rows[i] for i in numbers]).items()}
        check(batch)
        targets = Targets.of(batch)
        logits = signals.upcast(targets.pick(teacher(**batch))[:, : manifest.num_classes])  # [N, V]
        if not torch.isfinite(logits.logsumexp(-1)).all():
            broken = sorted(int(rows[i]["index"]) for i in numbers)
            raise ValueError(f"the teacher gives NaN or infinite logits among the rows with index {broken}: check it")
        sizes = torch.bincount(targets.row, minlength=len(numbers)).tolist()
        for name, values in _columns(logits, manifest).items():
            for i, part in zip(numbers, values.cpu().split(sizes), strict=True):
                found[i][name] = part.numpy().ravel()
    return {name: [found[i][name] for i in range(len(rows))] for name in manifest.features}


def _columns(logits: Tensor, manifest: Manifest) -> dict[str, Tensor]:
    """[N, V] -> each column's numbers, [N] or [N, k] or [N, S]."""
    top, ids = logits.topk(manifest.k, dim=-1)
    largest = top[:, :1]
    # Softmax does not see a shift, and near 0, where the probable classes then are, half precision is finest.
    likeliest = (top - largest).clamp(min=torch.finfo(torch.float16).min)
    tails = [t * tail((logits - largest) / t, ids) for t in manifest.temperatures if manifest.has_tail]
    return {
        "ids": ids.to(torch.uint16 if manifest.num_classes <= 2**16 else torch.int32),
        "logits": likeliest.to(getattr(torch, manifest.dtype)),
        "tails": torch.stack(tails, -1).clamp(min=torch.finfo(torch.float16).min) if tails else logits[:, :0],
        "entropy": signals.entropy(logits, manifest.entropy_temperature),
        "energy": signals.energy(logits, manifest.energy_temperature),
        "logsumexp": logits.logsumexp(-1),
    }


def _write(path: Path, columns: dict[str, list[Any]], features: Features) -> None:
    def fill(part: Path) -> None:
        with ArrowWriter(path=str(part), features=features) as writer:
            writer.write_table(Dataset.from_dict(columns, features=features).data.table)
            writer.finalize()

    write_atomically(path, fill)
