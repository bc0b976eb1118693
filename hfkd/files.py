"""Writing a file so that a reader never meets half of it."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | Path, content: bytes | Callable[[Path], None]) -> None:
    """Write `content` (bytes, or a function that fills the path it is given) beside `path`, sync it, then rename.

    Creates the parent folder. When anything fails the old file stays whole, nothing is left beside it, and the
    OSError names the path.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write {path}: {error.strerror}; choose a folder that is writable"
        ) from error
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
        if callable(content):
            content(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)
        os.replace(part, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}; free some space?") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
