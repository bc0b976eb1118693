"""Which hfkd this is, and which versions of other packages there are."""

from functools import cache
from importlib import metadata
from pathlib import Path

import xxhash

PACKAGE = Path(__file__).parents[1]
COPIED = "recipes"  # into the package by a wheel only


def installed_version(package: str) -> str | None:
    """The version of an installed package; None for one that is not installed, such as a checkout on PYTHONPATH."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def own_version() -> str:
    """The version, and a hash of the code, in which two installations of a version from its repository may differ."""
    version = installed_version(PACKAGE.name) or "unknown"
    digest = xxhash.xxh3_64()
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE)
        if name.parts[0] != COPIED:
            digest.update(name.as_posix().encode() + b"\0" + file.read_bytes().replace(b"\r\n", b"\n"))
    return f"{version}+{digest.hexdigest()[:8]}"
