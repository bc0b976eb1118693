"""What a text cache is, and its files: each found whole, bit for bit, or not at all."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from hfkd.teachers.fingerprint import changed_setting
from hfkd.utils.files import checksum, write_atomically

MANIFEST = "teacher_cache.json"
REVISION = 2  # of what is stored, and how
TAG = 16  # bytes at the end of a shard: its checksum
AGAIN = "call build_text_cache again with the same settings, which keeps every file that is whole"


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
    config: Mapping[str, Any] = field(default_factory=dict)  # the teacher's settings that may change its outputs
    source: str | None = None  # of the files that the teacher was loaded from, where it was from files
    captured: bool = False  # log-probabilities that another program wrote: no energies, no entropies
    revision: int = REVISION

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest | None":
        """The manifest in `folder`, None where there is none. ValueError for one that cannot be read, or is damaged."""
        path = Path(folder) / MANIFEST
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            stored = values.pop("checksum", None)
            if (revision := values.get("revision")) != REVISION and stored is None:
                raise ValueError(f"it is of revision {revision}, not {REVISION}")
            if stored != _hash(values):
                raise ValueError("its checksum is another")
            return cls(**values | {"temperatures": tuple(values["temperatures"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path} is no teacher cache of this version, or is damaged ({error}): delete the folder and build "
                f"anew; of a damaged cache delete this file alone, and {AGAIN}"
            ) from error

    def write(self, folder: str | Path) -> None:
        values = asdict(self)
        content = json.dumps(values | {"checksum": _hash(values)}, indent=2)
        write_atomically(Path(folder) / MANIFEST, content.encode())

    def refuse_other(self, folder: str | Path) -> None:
        """Raise ValueError when `folder` holds a cache of something else."""
        other = Manifest.read(folder)
        fault = None if other is None else self._unlike(other)
        if fault is not None:
            raise ValueError(
                f"{folder} holds another teacher cache: {fault}; choose another folder, or delete that one"
            )

    def _unlike(self, other: "Manifest") -> str | None:
        mine, its = asdict(self), asdict(other)
        for name in mine:
            if name not in ("config", "source") and mine[name] != its[name]:
                return f"its {name} is {its[name]!r}, this one's is {mine[name]!r}"
        return changed_setting(other.config, self.config)

    @property
    def shards(self) -> list[str]:
        return [f"shard-{number:05d}.arrow" for number in range(math.ceil(self.rows / self.shard_rows))]

    def missing(self, folder: str | Path) -> list[str]:
        """The shards that are not there, not whole, or of another cache. Reads every byte of them."""
        return [shard for shard in self.shards if not self._is_whole(Path(folder) / shard)]

    def write_shard(self, folder: str | Path, shard: str, columns: dict[str, list[Any]]) -> None:
        """`columns` as Arrow's stream format, and a checksum behind its end, where Arrow does not look."""

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
        if not self.captured:  # as caches were before there were others
            del belongs["captured"]
        return bytes.fromhex(checksum(path, size, json.dumps([shard, belongs]).encode()))

    @property
    def has_tail(self) -> bool:
        """Whether there are classes besides the k."""
        return self.k < self.num_classes

    @property
    def bytes_per_token(self) -> int:
        return bytes_per_token(self.k, self.num_classes, self.dtype, len(self.temperatures))

    @property
    def features(self) -> Features:
        """One row an example; `spreads` for each temperature, the others flat lists over its N target tokens."""
        numbers = {name: List(Value("float32")) for name in ("tails", "entropy", "energy", "logsumexp", "spreads")}
        ids = List(Value("uint16" if self.num_classes <= 2**16 else "int32"))
        key = {"index": Value("int64"), "tokens": Value("string")}
        return Features(key | {"ids": ids, "logits": List(Value(self.dtype))} | numbers)


def bytes_per_token(k: int, num_classes: int, dtype: str = "float16", temperatures: int = 1) -> int:
    """What a target token takes: k ids and logits, and in float32 entropy, energy, logsumexp and the buckets."""
    ids, logits = 2 if num_classes <= 2**16 else 4, np.dtype(dtype).itemsize
    return k * (ids + logits) + 4 * (3 + (temperatures if k < num_classes else 0))


def _hash(values: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(values, sort_keys=True).encode())
