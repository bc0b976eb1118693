"""The files that come with hfkd beside its code: recipes, their configurations, configurations of accelerate."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(folder: str) -> Path:
    """`recipes` or `accelerate_configs`: inside of the package as a wheel installs it, beside it in a checkout.

    Raises FileNotFoundError where neither is, as in a package that was copied by hand.
    """
    for path in (PACKAGE / folder, PACKAGE.parent / folder):
        if path.is_dir():
            return path
    raise FileNotFoundError(f"{folder}/ is neither in {PACKAGE} nor beside it: install hfkd by pip")


def shipped_or_given(value: str | Path, folder: Path, suffix: str = ".yaml") -> Path:
    """The file that `value` names, or the one of `folder` by that name, with or without its suffix."""
    for path in (Path(value), folder / value, folder / f"{value}{suffix}"):
        if path.is_file():
            return path
    return Path(value)
