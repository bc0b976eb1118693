"""Rows of logits in a sparse file that several processes can read and write at the same time.

S slots, M rows of one call, C classes.
"""

import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import xxhash
from filelock import FileLock
from torch import Tensor

from hfkd.teachers.agreement import spread_rows
from hfkd.teachers.image_cache.quantize import WIDEST, decode, encode
from hfkd.utils import formats
from hfkd.utils.files import write_atomically

logger = logging.getLogger(__name__)

HEADER = 4096  # bytes before the first record; room for the key
SCALE = 16  # bytes of a row's scale: four float32


class LogitStore:
    """A file with `slots` slots for one row of logits each, empty until written, and addressed by number.

    A record is a row's int16 levels, their float32 steps and offsets (see `quantize.py`), and a checksum.

    No locks: a record is valid only if its checksum, which includes its slot, is right. A record that is half written,
    written by two processes at once, or damaged counts as empty. What a killed process has written is kept by the
    kernel. Raises ValueError if the disk has too little space for all slots; the file is sparse and grows as it fills.
    """

    def __init__(self, path: str | Path, key: dict[str, str], slots: int, classes: int) -> None:
        self.path, self.slots, self.classes = Path(path), slots, classes
        self.payload = -(-2 * classes // 8) * 8 + SCALE  # bytes: q padded to a word, steps and offsets
        self.record = self.payload + 8
        self.nbytes = HEADER + slots * self.record
        self.full_disk = self.told_of_rows = False
        header = (
            json.dumps(key | {"layout": formats.IMAGE_CACHE, "slots": slots, "classes": classes}).encode().ljust(HEADER)
        )
        assert len(header) == HEADER, "the key does not fit its page"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):  # if several processes start together, one creates the file
                if not self._is_ours(header):
                    self._create(header)
        except PermissionError as error:
            raise OSError(
                error.errno,
                f"the teacher's logits cannot be written to {self.path.parent}: choose a folder that is writable",
            ) from error
        self._records = np.memmap(self.path, np.uint8, "r", HEADER, (slots, self.record))
        self._file = self.path.open("r+b", buffering=0)
        random = np.random.default_rng(0).integers(0, 1 << 64, self.payload // 8, dtype=np.uint64)
        self._multipliers = random | np.uint64(1)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """[M] slots -> logits [M, C] float32, zero for empty slots; and a mask [M] of slots with a row."""
        levels, scale, found = self.read_encoded(slots)
        return torch.where(found[:, None], decode(levels, scale), 0.0), found

    def read_encoded(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[M] slots -> levels [M, C] and scale [M, 4] of `encode`, and a mask [M] of slots with a row."""
        self._mend_length()
        wanted = slots.numpy()
        inside = (wanted >= 0) & (wanted < self.slots)
        records = self._records[np.where(inside, wanted, 0)]  # [M, record], a copy: checked bytes are those used
        tags = records[:, self.payload :].view(np.uint64).squeeze(-1)
        found = torch.from_numpy(inside & (tags == self._checksums(records[:, : self.payload], wanted)))
        levels = torch.from_numpy(records[:, : 2 * self.classes].view(np.int16))
        return levels, torch.from_numpy(records[:, self.payload - SCALE : self.payload].view(np.float32)), found

    def write(self, slots: Tensor, logits: Tensor) -> Tensor:
        """Store logits [M, C] in slots [M]; returns them, on the CPU, as they will be read.

        Rows that `encode` cannot represent, or whose slot is -1, are not stored and are returned unchanged.
        """
        logits = logits.float().cpu()
        levels, scale = encode(logits)
        kept = self.write_encoded(slots, levels, scale)
        return torch.where(kept[:, None], decode(levels, scale), logits)

    def write_encoded(self, slots: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
        """Store encoded rows, except those without a slot or a scale. Returns a mask [M] of stored rows."""
        resolved = scale.isfinite().all(1)
        if not resolved.all() and not self.told_of_rows:
            self.told_of_rows = True
            logger.warning(
                "Rows of the teacher's logits with NaN, infinity or a range above %g are not stored in %s: the "
                "teacher runs for them each time. Masked classes, with one value far below all others, are supported.",
                WIDEST,
                self.path,
            )
        kept = resolved & (slots >= 0)
        self._write(slots[kept], levels[kept], scale[kept])
        return kept

    def _write(self, slots: Tensor, levels: Tensor, scale: Tensor) -> None:
        records = np.zeros((len(slots), self.record), np.uint8)
        records[:, : 2 * self.classes] = levels.numpy().view(np.uint8)
        records[:, self.payload - SCALE : self.payload] = scale.numpy().view(np.uint8)
        tags = self._checksums(records[:, : self.payload], slots.numpy())
        records[:, self.payload :] = tags[:, None].view(np.uint8)
        self._put(slots.tolist(), records)

    def flush(self) -> None:
        """No-op: written rows are already with the kernel."""

    def count(self) -> int:
        """Number of slots with a row. Reads the whole file."""
        return sum(int(self.read_encoded(part)[2].sum()) for part in self.written(1 << 16))

    def examples(self) -> Tensor:
        """A few slots with a row, spread over the file by a fixed hash."""
        parts = list(self.written(1 << 12))
        full = [parts[number][self.read_encoded(parts[number])[2]] for number in spread_rows(len(parts))]
        return torch.tensor(
            [int(slots[number]) for slots in full for number in spread_rows(len(slots), 1)], dtype=torch.int64
        )

    def written(self, size: int) -> Iterator[Tensor]:
        """All slots, in parts of `size`, except where the file has a hole, which contains no rows."""
        with self.path.open("rb") as file:
            for part in torch.arange(self.slots).split(size):
                start, end = (HEADER + slot * self.record for slot in (int(part[0]), int(part[-1]) + 1))
                if _next_data(file.fileno(), start) < end:
                    yield part

    def _mend_length(self) -> None:
        """Restore the length of a file that was truncated while in use: reading past its end would raise a fatal
        signal.

        The restored part is a hole, and thus empty.
        """
        if os.fstat(self._file.fileno()).st_size < self.nbytes:
            logger.warning("%s was truncated while in use: the lost rows are computed again", self.path)
            self._file.truncate(self.nbytes)

    def _put(self, slots: list[int], records: np.ndarray) -> None:
        # Not through the mapping: on a full disk that raises a fatal signal, whereas a write raises an exception.
        try:
            for slot, record in zip(slots, records, strict=True) if not self.full_disk else ():
                self._file.seek(HEADER + slot * self.record)
                self._file.write(record.tobytes())
        except OSError as error:
            self.full_disk = True
            logger.warning("No more rows are stored in %s (%s); stored rows are still used", self.path, error.strerror)

    def _checksums(self, payload: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """An odd checksum for each record [M]; that of an empty record is 0."""
        words = np.ascontiguousarray(payload).view(np.uint64)  # [M, words]
        mixed = (words ^ (words >> np.uint64(29))) * self._multipliers
        own = slots.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        total = mixed.sum(1, dtype=np.uint64) + own
        return (total ^ (total >> np.uint64(32))) | np.uint64(1)

    def _is_ours(self, header: bytes) -> bool:
        if not self.path.is_file():
            return False
        with self.path.open("rb") as file:
            if file.read(HEADER) == header and self.path.stat().st_size == self.nbytes:
                logger.info("Using the teacher's logits in %s", self.path)
                return True
        logger.warning("The file %s is not a store of this teacher's logits and is replaced", self.path)
        return False

    def _create(self, header: bytes) -> None:
        free = shutil.disk_usage(self.path.parent).free
        size = f"{self.nbytes / 1e9:.2f} GB ({self.slots:,} rows of {self.classes} classes)"
        if free < self.nbytes:
            raise ValueError(
                f"the teacher's logits may take {size}, but {self.path.parent} has only {free / 1e9:.2f} GB free: "
                "choose another folder, or leave teacher_cache_dir out"
            )
        logger.info("The teacher's logits will take up to %s, growing with use, in %s", size, self.path)

        def fill(part: Path) -> None:
            part.write_bytes(header)
            os.truncate(part, self.nbytes)

        write_atomically(self.path, fill)


def _next_data(file: int, start: int) -> int:
    """Position of the first byte from `start` on that is not in a hole; `start` if the system does not support it."""
    if not hasattr(os, "SEEK_DATA"):
        return start
    try:
        return os.lseek(file, start, os.SEEK_DATA)
    except OSError as error:
        return sys.maxsize if error.errno == errno.ENXIO else start


def file_name(key: dict[str, str]) -> str:
    """Each version of the format has a file of its own: versions that share a folder would replace each other's."""
    named = json.dumps(formats.with_version(key, formats.IMAGE_CACHE, unmarked=2))
    return f"logits-{xxhash.xxh3_64_hexdigest(named.encode())}.bin"
