"""Identifies the files of a dataset without loading it."""

import os
from functools import lru_cache
from pathlib import Path

import xxhash

from hfkd.utils.files import add_samples

READ = 64  # files of a folder whose content is read


def data_source(name_or_path: str) -> str | None:
    """A hash of a file, or of a folder's files; None for a Hub id.

    Of a folder the names of all files count, and samples of up to 64 of them, evenly spaced. Hidden files are left out.
    """
    path = Path(name_or_path).expanduser()
    return _hash(path, path.stat().st_mtime_ns) if path.exists() else None


@lru_cache
def _hash(path: Path, modified: int) -> str:
    """`modified`: when the path was modified, so that a change is noticed within one process."""
    digest = xxhash.xxh3_128()
    files = [path] if path.is_file() else sorted(_files(path))
    for file in files if path.is_dir() else []:
        digest.update(os.fsencode(file.relative_to(path)) + b"\n")
    for file in files[:: -(-len(files) // READ) or 1]:
        if file.is_file():  # no link to nothing
            add_samples(file, digest)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return found
