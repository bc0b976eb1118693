"""Packages of other projects, with which the benchmarks compare if they are installed."""

import importlib
import sys
from pathlib import Path


def importable(package: str, folder: Path | str | None) -> bool:
    """Whether `package` can be imported, also from `folder` (of `pip install --target`); if not, prints the reason."""
    if folder and str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        importlib.import_module(package)
    except ImportError as error:
        print(f"{package} is left out: {error} (install it, or pass its folder)", file=sys.stderr)
        return False
    return True
