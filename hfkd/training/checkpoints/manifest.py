"""The manifest of a checkpoint: size and checksum of each file, so that damage is found before a run is resumed."""

import json
from pathlib import Path

from hfkd.utils.files import checksum, sync, write_atomically
from hfkd.utils.saved_weights import MANIFEST, entry_of

CHANGED = "if you changed it on purpose, delete files.json in the same folder"


def write_manifest(folder: Path) -> None:
    """Write the manifest of the files in `folder`, after flushing all of them to disk."""
    entries = {}
    for file in files_in(folder):
        if file.name == MANIFEST:
            continue
        sync(file)
        entries[file.relative_to(folder).as_posix()] = entry_of(file)
    write_atomically(folder / MANIFEST, json.dumps(entries, indent=2, sort_keys=True).encode())


def incomplete(checkpoint: str | Path, contents: bool = False) -> str | None:
    """What is wrong with `checkpoint`; None if every file listed in its manifest exists with the listed size.

    contents: also compare checksums, which reads all files.
    """
    folder = Path(checkpoint)
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in entries.items():
            if not (folder / name).is_file():
                return f"its {name} is missing ({CHANGED})"
            # Versions before 0.2 stored only the size, as a number.
            size, digest = (entry["bytes"], entry["xxh3_128"]) if isinstance(entry, dict) else (entry, None)
            if (folder / name).stat().st_size != size:
                return f"its {name} does not have the size that was written ({CHANGED})"
            if contents and digest is not None and checksum(folder / name) != digest:
                return (
                    f"its {name} is damaged: its checksum differs from the one stored when it was written ({CHANGED})"
                )
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, AttributeError, KeyError):  # not JSON, or not a mapping of files
        return f"its {MANIFEST} cannot be read"
    return None if entries else f"its {MANIFEST} lists no file"


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
