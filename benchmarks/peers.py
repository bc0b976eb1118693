"""Other projects' packages, which the benchmarks compare with where they are installed."""

import importlib
import sys
from pathlib import Path


def importable(package: str, folder: Path | str | None) -> bool:
    """Whether `package` can be imported, `folder` (of `pip install --target`) included; if not, stderr says why."""
    if folder and str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        importlib.import_module(package)
    except ImportError as error:
        print(f"{package} is left out: {error} (install it, or name the folder that holds it)", file=sys.stderr)
        return False
    return True
