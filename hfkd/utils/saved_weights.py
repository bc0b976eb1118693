"""Checksums of the weights that a run has saved, to detect damage when they are loaded."""

import json
from collections.abc import Iterable
from pathlib import Path

from hfkd.utils.files import checksum, write_atomically

MANIFEST = "files.json"  # of a checkpoint, for all of its files: {name: {"bytes": size, "xxh3_128": checksum}}
SAVED = "saved_weights.json"  # of a saved student, for its weights only
SUFFIXES = (".safetensors", ".bin")
TRAINING_ARGS = "training_args.bin"  # a pickle, which is never loaded


def list_weights(folder: Path, names: Iterable[str]) -> None:
    """Save the checksums of the files with weights in `folder`."""
    weights = [name for name in sorted(names) if name.endswith(SUFFIXES) and name != TRAINING_ARGS]
    write_atomically(folder / SAVED, json.dumps({name: entry_of(folder / name) for name in weights}, indent=2).encode())


def entry_of(file: Path) -> dict[str, int | str]:
    return {"bytes": file.stat().st_size, "xxh3_128": checksum(file)}


def refuse_damaged(folder: Path, names: Iterable[str] | None = None) -> None:
    """Raise ValueError if a file with weights in `folder`, of `names` if given, has changed since it was saved.

    Files that are not listed are not checked, and an unreadable list is ignored.
    """
    for listing in (SAVED, MANIFEST):
        try:
            entries = json.loads((folder / listing).read_text(encoding="utf-8"))
            known = {name: entry["xxh3_128"] for name, entry in entries.items() if isinstance(entry, dict)}
        except (OSError, ValueError, KeyError, AttributeError):
            continue
        for name in known.keys() & set(known if names is None else names):
            file = folder / name
            if name.endswith(SUFFIXES) and file.is_file() and checksum(file) != known[name]:
                raise ValueError(
                    f"{file} is damaged: its checksum differs from that of the saved file (delete {listing} beside it "
                    "if you changed it on purpose)"
                )
