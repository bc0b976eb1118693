"""Which hfkd this is."""

from functools import cache
from importlib import metadata
from pathlib import Path

import xxhash

PACKAGE = Path(__file__).parents[1]


@cache
def own_version() -> str:
    """The version, and a hash of the code, in which two installations of a version from its repository may differ."""
    try:
        version = metadata.version(PACKAGE.name)
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        version = "unknown"
    digest = xxhash.xxh3_64()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0" + file.read_bytes().replace(b"\r\n", b"\n"))
    return f"{version}+{digest.hexdigest()[:8]}"
