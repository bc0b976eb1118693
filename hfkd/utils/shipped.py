"""Files that are shipped with hfkd: recipes, their configurations, and configurations of accelerate."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(folder: str) -> Path:
    """The folder `recipes` or `accelerate_configs`: inside the package in a wheel, beside it in a checkout.

    Raises FileNotFoundError if it is in neither place, as in a package that was copied by hand.
    """
    for path in (PACKAGE / folder, PACKAGE.parent / folder):
        if path.is_dir():
            return path
    raise FileNotFoundError(f"{folder}/ is neither in {PACKAGE} nor beside it: install hfkd by pip")


def shipped_or_given(value: str | Path, folder: Path) -> Path:
    """The file `value`, or the file of that name in `folder`, with or without its suffix `.yaml`."""
    for path in (Path(value), folder / value, folder / f"{value}.yaml"):
        if path.is_file():
            return path
    return Path(value)
