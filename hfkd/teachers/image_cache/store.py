"""Rows of logits in one sparse file that many processes read and write at once.

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
from hfkd.utils.files import write_atomically

logger = logging.getLogger(__name__)

HEADER = 4096  # bytes before the first record; room for the key
LAYOUT = 2  # raise this when the bytes of a record change
SCALE = 16  # bytes of a row's scale: four float32


class LogitStore:
    """`slots` places for one row of logits each, empty until written: read and write by slot number.

    A record is a row's int16 levels, their float32 steps and offsets (see `quantize.py`), and a checksum.

    No locks: a record counts only when its checksum, which covers its slot, is right. One that is half written, written
    by two at once, or damaged is an empty one. A killed process leaves what it has written, for that is the kernel's.
    Raises ValueError when the disk has no room for all slots; the file is sparse and takes room as it fills.
    """

    def __init__(self, path: str | Path, key: dict[str, str], slots: int, classes: int) -> None:
        self.path, self.slots, self.classes = Path(path), slots, classes
        self.payload = -(-2 * classes // 8) * 8 + SCALE  # bytes: q padded to a word, steps and offsets
        self.record = self.payload + 8
        self.nbytes = HEADER + slots * self.record
        self.full_disk = self.told_of_rows = False
        header = json.dumps(key | {"layout": LAYOUT, "slots": slots, "classes": classes}).encode().ljust(HEADER)
        assert len(header) == HEADER, "the key does not fit its page"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):  # of several that start together one creates the file
                if not self._is_ours(header):
                    self._create(header)
        except PermissionError as error:
            raise OSError(
                error.errno,
                f"the teacher's logits cannot be kept in {self.path.parent}: choose a folder that is writable",
            ) from error
        self._records = np.memmap(self.path, np.uint8, "r", HEADER, (slots, self.record))
        self._file = os.open(self.path, os.O_WRONLY)
        random = np.random.default_rng(0).integers(0, 1 << 64, self.payload // 8, dtype=np.uint64)
        self._multipliers = random | np.uint64(1)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """[M] slots -> logits [M, C] float32, and which rows have any [M]; the others are zero."""
        levels, scale, found = self.read_encoded(slots)
        return torch.where(found[:, None], decode(levels, scale), 0.0), found

    def read_encoded(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[M] slots -> levels [M, C] and scale [M, 4] as `encode` makes them, and which rows are any [M]."""
        self._mend_length()
        wanted = slots.numpy()
        inside = (wanted >= 0) & (wanted < self.slots)
        records = self._records[np.where(inside, wanted, 0)]  # [M, record], a copy: what is checked is what is used
        tags = records[:, self.payload :].view(np.uint64).squeeze(-1)
        found = torch.from_numpy(inside & (tags == self._checksums(records[:, : self.payload], wanted)))
        levels = torch.from_numpy(records[:, : 2 * self.classes].view(np.int16))
        return levels, torch.from_numpy(records[:, self.payload - SCALE : self.payload].view(np.float32)), found

    def write(self, slots: Tensor, logits: Tensor) -> Tensor:
        """Store logits [M, C] in [M] slots and return them, on the CPU, as they will be read.

        Rows that `encode` has no levels for, or whose slot is -1, are left out and returned as they are.
        """
        logits = logits.float().cpu()
        levels, scale = encode(logits)
        kept = self.write_encoded(slots, levels, scale)
        return torch.where(kept[:, None], decode(levels, scale), logits)

    def write_encoded(self, slots: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
        """Store rows that `encode` made, but for those without a slot or a scale. Returns which are stored, [M]."""
        resolved = scale.isfinite().all(1)
        if not resolved.all() and not self.told_of_rows:
            self.told_of_rows = True
            logger.warning(
                "Rows of the teacher's logits with NaN, infinity or a range above %g are not kept in %s: the teacher "
                "runs for them each time. Masked classes, alike and far below all others, may be in any row.",
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
        """Nothing is under way here: what was written is the kernel's."""

    def count(self) -> int:
        """How many slots hold a row. Reads all that is written."""
        return sum(int(self.read_encoded(part)[2].sum()) for part in self.written(1 << 16))

    def examples(self) -> Tensor:
        """A few slots that hold a row, spread over the file by a fixed hash."""
        parts = list(self.written(1 << 12))
        full = [parts[number][self.read_encoded(parts[number])[2]] for number in spread_rows(len(parts))]
        return torch.tensor(
            [int(slots[number]) for slots in full for number in spread_rows(len(slots), 1)], dtype=torch.int64
        )

    def written(self, size: int) -> Iterator[Tensor]:
        """All slots, `size` at a time, but for those where the file has a hole: they hold nothing."""
        with self.path.open("rb") as file:
            for part in torch.arange(self.slots).split(size):
                start, end = (HEADER + slot * self.record for slot in (int(part[0]), int(part[-1]) + 1))
                if _next_data(file.fileno(), start) < end:
                    yield part

    def _mend_length(self) -> None:
        """Give a file that was cut while it is in use its length back: to read past its end is a signal that kills.

        What was cut off is a hole, and so empty.
        """
        if os.fstat(self._file).st_size < self.nbytes:
            logger.warning("%s was cut while it was in use: what it has lost is computed again", self.path)
            os.ftruncate(self._file, self.nbytes)

    def _put(self, slots: list[int], records: np.ndarray) -> None:
        # Not through the mapping: on a full disk that is a signal that kills the process, and this an exception.
        try:
            for slot, record in zip(slots, records, strict=True) if not self.full_disk else ():
                os.pwrite(self._file, record.tobytes(), HEADER + slot * self.record)
        except OSError as error:
            self.full_disk = True
            logger.warning("Nothing more is stored in %s, what is there is still used: %s", self.path, error.strerror)

    def _checksums(self, payload: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """One odd number for each record [M]: an empty record's is 0."""
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
        logger.warning("The file %s is no store of this teacher's logits: it is begun anew", self.path)
        return False

    def _create(self, header: bytes) -> None:
        free = shutil.disk_usage(self.path.parent).free
        size = f"{self.nbytes / 1e9:.2f} GB ({self.slots:,} rows of {self.classes} classes)"
        if free < self.nbytes:
            raise ValueError(
                f"the teacher's logits may take {size}, and {self.path.parent} has {free / 1e9:.2f} GB free: choose "
                "another folder, or keep no cache"
            )
        logger.info("The teacher's logits will take up to %s, as they come, in %s", size, self.path)

        def fill(part: Path) -> None:
            part.write_bytes(header)
            os.truncate(part, self.nbytes)

        write_atomically(self.path, fill)


def _next_data(file: int, start: int) -> int:
    """Where the first byte that is not in a hole is, from `start` on; `start` where the system does not tell."""
    if not hasattr(os, "SEEK_DATA"):
        return start
    try:
        return os.lseek(file, start, os.SEEK_DATA)
    except OSError as error:
        return sys.maxsize if error.errno == errno.ENXIO else start


def file_name(key: dict[str, str]) -> str:
    return f"logits-{xxhash.xxh3_64_hexdigest(json.dumps(key).encode())}.bin"
