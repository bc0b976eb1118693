"""What a checkpoint is made of: each file's size and checksum, so that damage is found before anything is resumed."""

import json
from pathlib import Path

from hfkd.utils.files import checksum, sync, write_atomically
from hfkd.utils.saved_weights import MANIFEST, entry_of

CHANGED = "delete files.json beside it if you changed it on purpose"


def write_manifest(folder: Path) -> None:
    """List the files of `folder`, all of them on the disk."""
    entries = {}
    for file in files_in(folder):
        if file.name == MANIFEST:
            continue
        sync(file)
        entries[file.relative_to(folder).as_posix()] = entry_of(file)
    write_atomically(folder / MANIFEST, json.dumps(entries, indent=2, sort_keys=True).encode())


def incomplete(checkpoint: str | Path, contents: bool = False) -> str | None:
    """What `checkpoint` lacks, or None if every file that was written into it is there, and as long as it was.

    contents: and holds what it held, which takes reading all of it.
    """
    folder = Path(checkpoint)
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in entries.items():
            if not (folder / name).is_file():
                return f"its {name} is missing ({CHANGED})"
            # A number alone is the size, in versions before 0.2.
            size, digest = (entry["bytes"], entry["xxh3_128"]) if isinstance(entry, dict) else (entry, None)
            if (folder / name).stat().st_size != size:
                return f"its {name} is not as long as when it was written ({CHANGED})"
            if contents and digest is not None and checksum(folder / name) != digest:
                return f"its {name} is damaged: it does not hold what was written ({CHANGED})"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, AttributeError, KeyError):  # not JSON, or no mapping of files
        return f"its {MANIFEST} cannot be read"
    return None if entries else f"its {MANIFEST} lists no file"


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
