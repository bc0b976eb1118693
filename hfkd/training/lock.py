"""A lock on the output folder: a second run at the same time would overwrite the first one's files."""

import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from hfkd.utils.files import write_atomically

LOCK, OWNER = "_running.lock", "_running.json"  # names that Trainer never uploads
ORPHANS = 15.0  # seconds to wait for the loader workers of a killed process, which still hold its lock
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
NOBODY = None, "an unknown machine"  # where no owner is known
logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Lock `folder` for a run. Raises ValueError if another live process holds the lock; that of a dead one is taken
    over.

    On a file system without locks a warning is logged and nothing is locked. Raises OSError if the folder is not
    writable, before a scan and an epoch have been spent.
    """
    folder = Path(folder)
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder)
    except (NotImplementedError, OSError) as error:
        if isinstance(error, Timeout):
            raise
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise OSError(
                error.errno, f"output_dir={folder} is not writable ({error.strerror}): choose a folder that is writable"
            ) from error
        logger.warning("%s cannot be locked (%s): do not start a second run in it", folder, error)
        yield
        return
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        with suppress(OSError):  # a full disk is reported by the first checkpoint
            write_atomically(folder / OWNER, json.dumps(owner).encode())
        yield
    finally:
        for name in (OWNER, LOCK):
            with suppress(OSError):
                (folder / name).unlink()
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire(timeout=0)
        return
    except Timeout:
        pid, host = owner_of(folder)
    here = host == socket.gethostname()
    if here and pid is not None and not psutil.pid_exists(pid):
        logger.warning("%s is locked by process %d, which has died: waiting for its workers to end", folder, pid)
        with suppress(Timeout):
            lock.acquire(timeout=ORPHANS)
            return
    raise ValueError(
        f"{folder} is in use by process {pid} on {host}: wait until it ends, stop it, or choose another output_dir"
    )


def owner_of(folder: str | Path) -> tuple[int | None, str]:
    """The process, and the machine, that has locked `folder`."""
    try:
        owner = json.loads((Path(folder) / OWNER).read_text(encoding="utf-8"))
        return int(owner["pid"]), str(owner["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return NOBODY
