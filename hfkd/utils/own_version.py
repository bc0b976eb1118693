"""Which hfkd this is."""

from functools import cache
from importlib import metadata
from pathlib import Path

import xxhash

PACKAGE = Path(__file__).parents[1]
COPIED = "recipes"  # into the package by a wheel only


@cache
def own_version() -> str:
    """The version, and a hash of the code, in which two installations of a version from its repository may differ."""
    try:
        version = metadata.version(PACKAGE.name)
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        version = "unknown"
    digest = xxhash.xxh3_64()
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE)
        if name.parts[0] != COPIED:
            digest.update(name.as_posix().encode() + b"\0" + file.read_bytes().replace(b"\r\n", b"\n"))
    return f"{version}+{digest.hexdigest()[:8]}"
