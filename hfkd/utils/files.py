"""Atomic writing of files, and hashes of their content."""

import contextlib
import errno
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import xxhash

SAMPLES, BLOCK = 64, 1 << 14  # samples of a large file, in bytes
FULL = "free some space"
REMEDIES = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.EISDIR: "a folder has the file's name: move it away, or choose another folder",
    errno.EACCES: "choose a folder that is writable",
    errno.EROFS: "choose a folder that is writable",
}


def write_atomically(path: str | Path, content: bytes | Callable[[Path], None]) -> None:
    """Write `content`, bytes or a function that writes to a path, to a temporary file, sync it, and rename it.

    Creates the parent folder. If anything fails, the old file is unchanged, no temporary file is left, and the OSError
    names the path. Permissions follow the umask; for a symbolic link, the file that it points to is replaced.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("xb")
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write {path}: {error.strerror}; choose a folder that is writable"
        ) from error
    try:
        with file:
            if isinstance(content, bytes):
                file.write(content)
        if callable(content):
            content(part)
        sync(part)
        os.replace(part, target)
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "is it still there, and writable?")
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}; {remedy}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def sync(path: str | Path) -> None:
    """Wait until the content of `path`, a file or a folder's entries, is on the disk (fsync)."""
    writable = not os.path.isdir(path) and os.access(path, os.W_OK)  # Windows syncs no other handle
    handle = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(path: str | Path, size: int | None = None, start: bytes = b"") -> str:
    """xxh3_128 of `start` and the first `size` bytes of a file, or all of it, in hexadecimal."""
    digest, buffer = xxhash.xxh3_128(start), memoryview(bytearray(1 << 20))
    left = sys.maxsize if size is None else size
    with open(path, "rb", buffering=0) as file:
        while left and (count := file.readinto(buffer[: min(left, len(buffer))])):
            digest.update(buffer[:count])
            left -= count
    return digest.hexdigest()


def add_samples(path: Path, digest: xxhash.xxh3_128) -> None:
    """Add the size of a file, and samples of its content, to `digest`: all of it up to about 1 MiB."""
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as stream:
        for part in range(SAMPLES + 1):
            stream.seek(max(size - BLOCK, 0) * part // SAMPLES)
            digest.update(stream.read(BLOCK))
