"""A teacher scan on disk, used only if it is complete and was made from the same teacher, data and settings."""

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash
from datasets import Dataset
from datasets.fingerprint import Hasher
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hfkd.data.epochs import epoch_transform
from hfkd.losses.temperatures import Level
from hfkd.teachers.code import code_hash
from hfkd.teachers.fingerprint import data_fingerprint, teacher_key
from hfkd.teachers.row_reader import RowReader
from hfkd.utils import formats
from hfkd.utils.files import write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScanKey:
    """Everything that a scan depends on; a cached scan is used only if all of it is equal."""

    teacher: str
    data: str
    transform: str
    collate: str
    views: str
    precision: str
    energy_temperature: float
    entropy_temperature: float
    seed: int
    level: Level
    num_classes: int | None
    task: str
    grid: int | None

    @classmethod
    def of(cls, reader: RowReader, views: str, seed: int, level: Level) -> "ScanKey | None":
        """The key; None, and thus no caching, for a dataset, transform or collate function that cannot be hashed."""
        dataset, collate = reader.dataset, reader.collate
        if not isinstance(dataset, Dataset):
            return None
        ours = epoch_transform(dataset)
        try:  # the hasher identifies a module's function by its name only
            transform = f"{repr(ours) if ours is not None else Hasher.hash(dataset.format)} {code_hash(dataset.format)}"
            collated = f"{Hasher.hash(collate)} {code_hash(collate)}"
        except Exception as error:  # pickling may raise any error
            logger.warning("The teacher scan is not cached: the transform or the collator cannot be hashed (%s)", error)
            return None
        return cls(
            teacher_key(reader.teacher),
            data_fingerprint(dataset),
            transform,
            collated,
            views,
            reader.precision,
            reader.energy_temperature,
            reader.entropy_temperature,
            seed,
            level,
            reader.num_classes,
            reader.task.name,
            reader.task.segmentation_stride,
        )

    @property
    def text(self) -> str:
        return json.dumps(formats.with_version(asdict(self), formats.SCAN))


@dataclass(frozen=True)
class ScanFile:
    """`folder/scan-HASH.safetensors`."""

    folder: Path
    key: ScanKey

    @property
    def path(self) -> Path:
        return self.folder / f"scan-{xxhash.xxh3_64_hexdigest(self.key.text.encode())}.safetensors"

    def write(self, columns: dict[str, Tensor], device: str) -> None:
        """device: that on which the values were computed, which determines the tolerance of comparisons."""
        metadata = {"key": self.key.text, "checksum": _checksum(columns), "device": device}
        write_atomically(self.path, save(columns, metadata))

    def read(self, rows: int) -> tuple[dict[str, Tensor], str] | None:
        """The columns and their device; None, with a warning, for a damaged or unrelated file.

        Columns have one value for each of `rows`, besides those of documents or items.
        """
        if not os.path.isfile(self.path):  # unlike Path.is_file, also in a folder that may not be read
            return None
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                columns = {name: file.get_tensor(name) for name in sorted(file.keys())}
            sound = metadata.get("checksum") == _checksum(columns)
            of_rows = columns["row_energy" if "row_energy" in columns else "energy"]
            sound = sound and of_rows.shape == (rows,) and {"energy", "entropy", "prediction"} <= columns.keys()
        except (SafetensorError, OSError, TypeError, KeyError) as error:  # a foreign file has other tensors
            reason = f"it cannot be read ({error})"
        else:
            if sound and metadata.get("key") == self.key.text:
                logger.info("Using the teacher scan in %s", self.path)
                return columns, metadata.get("device", "")
            reason = "it belongs to another teacher, dataset or transform" if sound else "its checksum is wrong"
        self.pass_over(reason)
        return None

    def pass_over(self, reason: str) -> None:
        logger.warning("The teacher scan in %s is not used: %s. Scanning again.", self.path, reason)


def _checksum(columns: dict[str, Tensor]) -> str:
    return xxhash.xxh3_64_hexdigest(b"".join(tensor.numpy().tobytes() for _, tensor in sorted(columns.items())))
