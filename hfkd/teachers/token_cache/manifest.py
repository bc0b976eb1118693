"""The manifest of a text cache, and its files, which are valid only with the right checksum."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from hfkd.teachers.fingerprint import changed_setting
from hfkd.utils import formats
from hfkd.utils.files import checksum, write_atomically

MANIFEST = "teacher_cache.json"
TAG = 16  # bytes at the end of a shard: its checksum
HASHES = "hashes of weights in their dtype and quantisation, and of the layers as this version of torch describes them"
AGAIN = "call build_text_cache again with the same settings, which keeps all intact files"


@dataclass(frozen=True)
class Manifest:
    """What a cache was made from, and with which settings. Caches with equal manifests have equal contents."""

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
    name: str = ""  # the teacher's name, for display
    config: Mapping[str, Any] = field(default_factory=dict)  # settings of the teacher that may change its outputs
    source: str | None = None  # identifies the files that the teacher was loaded from
    captured: bool = False  # from captured log-probabilities: no energies, no entropies
    revision: int = formats.TOKEN_CACHE

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest | None":
        """The manifest in `folder`; None if there is none. Raises ValueError for one that is unreadable, damaged, or
        of another revision.
        """
        path = Path(folder) / MANIFEST
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            stored, revision = values.pop("checksum", None), values.get("revision")
            if revision != formats.TOKEN_CACHE and stored is None:
                raise ValueError(f"it has revision {revision}, not {formats.TOKEN_CACHE}")
            if stored != _hash(values):
                raise ValueError("its checksum is wrong")
            if revision == formats.TOKEN_CACHE:
                return cls(**values | {"temperatures": tuple(values["temperatures"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a teacher cache of this version, or is damaged ({error}): delete the folder and "
                f"build it again; for a damaged cache delete only this file, and {AGAIN}"
            ) from error
        raise ValueError(
            f"{path} has revision {revision} of the format of teacher caches, and this version of hfkd reads revision "
            f"{formats.TOKEN_CACHE}: train with the version that built it, or build another cache in another folder"
        )

    def write(self, folder: str | Path) -> None:
        values = asdict(self)
        content = json.dumps(values | {"checksum": _hash(values)}, indent=2)
        write_atomically(Path(folder) / MANIFEST, content.encode())

    def refuse_other(self, folder: str | Path) -> None:
        """Raise ValueError if `folder` has a cache with another manifest."""
        other = Manifest.read(folder)
        fault = None if other is None else self._unlike(other)
        if fault is not None:
            raise ValueError(
                f"{folder} contains another teacher cache: {fault}; choose another folder, or delete that one"
            )

    def _unlike(self, other: "Manifest") -> str | None:
        mine, its = asdict(self), asdict(other)
        for name in mine:
            if name not in ("config", "source") and mine[name] != its[name]:
                what = f"its {name} is {its[name]!r}, that of this cache is {mine[name]!r}"
                return f"{what} ({HASHES})" if name == "teacher" else what
        return changed_setting(other.config, self.config)

    @cached_property  # there may be thousands, of which rows are found one by one
    def shards(self) -> list[str]:
        return [f"shard-{number:05d}.arrow" for number in range(math.ceil(self.rows / self.shard_rows))]

    def missing(self, folder: str | Path) -> list[str]:
        """The shards that are missing, damaged, or of another cache. Reads all files."""
        return [shard for shard in self.shards if not self._is_whole(Path(folder) / shard)]

    def write_shard(self, folder: str | Path, shard: str, columns: dict[str, list[Any]]) -> None:
        """Write `columns` in Arrow's stream format, followed by a checksum, which Arrow ignores."""

        def fill(part: Path) -> None:
            with ArrowWriter(path=str(part), features=self.features) as writer:
                writer.write_table(Dataset.from_dict(columns, features=self.features).data.table)
                writer.finalize()
            tag = self._tag(part, shard, part.stat().st_size)
            with part.open("ab") as file:
                file.write(tag)

        write_atomically(Path(folder) / shard, fill)

    def _is_whole(self, path: Path) -> bool:
        try:
            size = path.stat().st_size - TAG
            if size <= 0:
                return False
            with path.open("rb") as file:
                file.seek(size)
                return file.read() == self._tag(path, path.name, size)
        except OSError:
            return False

    def _tag(self, path: Path, shard: str, size: int) -> bytes:
        """The checksum of the first `size` bytes of `shard`, and of the cache that it belongs to."""
        belongs = {name: value for name, value in asdict(self).items() if name not in ("config", "source", "name")}
        if not self.captured:  # as in caches of earlier versions
            del belongs["captured"]
        return bytes.fromhex(checksum(path, size, json.dumps([shard, belongs]).encode()))

    @property
    def has_tail(self) -> bool:
        """Whether there are other classes than the k stored ones."""
        return self.k < self.num_classes

    @property
    def bytes_per_token(self) -> int:
        return bytes_per_token(self.k, self.num_classes, self.dtype, len(self.temperatures))

    @property
    def features(self) -> Features:
        """One row per example; `spreads` has a value per temperature, the others are flat lists over target tokens."""
        numbers = {name: List(Value("float32")) for name in ("tails", "entropy", "energy", "logsumexp", "spreads")}
        ids = List(Value("uint16" if self.num_classes <= 2**16 else "int32"))
        key = {"index": Value("int64"), "tokens": Value("string")}
        return Features(key | {"ids": ids, "logits": List(Value(self.dtype))} | numbers)


def bytes_per_token(k: int, num_classes: int, dtype: str = "float16", temperatures: int = 1) -> int:
    """Size of a target token: k ids and logits, and in float32 entropy, energy, logsumexp and the buckets."""
    ids, logits = 2 if num_classes <= 2**16 else 4, np.dtype(dtype).itemsize
    return k * (ids + logits) + 4 * (3 + (temperatures if k < num_classes else 0))


def _hash(values: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(values, sort_keys=True).encode())
