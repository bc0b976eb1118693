"""The weights that a run has saved, with their checksums beside them: whoever loads them later finds damage."""

import json
from collections.abc import Iterable
from pathlib import Path

from hfkd.utils.files import checksum, write_atomically

MANIFEST = "files.json"  # of a checkpoint, with all of its files; {name: {"bytes": size, "xxh3_128": checksum}}
SAVED = "saved_weights.json"  # of a student, with its weights alone
SUFFIXES = (".safetensors", ".bin")
TRAINING_ARGS = "training_args.bin"  # a pickle, which nothing reads


def list_weights(folder: Path, names: Iterable[str]) -> None:
    """Write down the checksums of those files in `folder` that hold weights."""
    weights = [name for name in sorted(names) if name.endswith(SUFFIXES) and name != TRAINING_ARGS]
    write_atomically(folder / SAVED, json.dumps({name: entry_of(folder / name) for name in weights}, indent=2).encode())


def entry_of(file: Path) -> dict[str, int | str]:
    return {"bytes": file.stat().st_size, "xxh3_128": checksum(file)}


def refuse_damaged(folder: Path, names: Iterable[str] | None = None) -> None:
    """Raise ValueError where a file of weights in `folder`, one of `names` if given, is not as it was saved.

    Nothing is known of files that no list names. A list that cannot be read names none.
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
                    f"{file} is damaged: it does not hold what was saved (delete {listing} beside it if you changed it "
                    "on purpose)"
                )
