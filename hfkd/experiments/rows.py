"""Tables of runs, read from YAML files: each row is a set of settings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from hfkd.utils.parsing import read_layers
from hfkd.utils.setting_types import TextLoader

Layer = Path | Mapping[str, Any]
MEASURES = ("accuracy", "loss", "time")


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a table. `layers` are settings or files of settings, with later ones taking precedence; `own`: names
    of the settings that define the row; `method`: its name in the published numbers; `pair`: the file with its
    networks. `quoted`: for a row that only shows a published number, the reason why it is not run.
    """

    label: str
    method: str
    pair: str | None
    layers: tuple[Layer, ...]
    own: frozenset[str]
    quoted: str | None = None

    @property
    def name(self) -> str:
        return self.label if self.pair is None else f"{self.label}, {self.pair}"

    @property
    def folder(self) -> str:
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower().replace("%", " percent")).strip("_")


@dataclass(frozen=True)
class Table:
    """`reference`: the row whose images per second count as 1, for each pair; `published`: sources of published
    numbers, in order of preference; `measure`: what the table shows, accuracies, losses of a short run, or times.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    reference: str
    published: tuple[str, ...] | None = None
    measure: Literal["accuracy", "loss", "time"] = "accuracy"
    refused: str | None = None

    @property
    def run(self) -> tuple[Row, ...]:
        """The rows to run, without quoted ones."""
        return tuple(row for row in self.rows if row.quoted is None)


def read_table(path: str | Path) -> Table:
    """Read a table from its file. Paths in it are relative to the file. Raises ValueError for unknown or invalid
    entries.

    Keys: `title`, `measure`, `reference`, `published`, `refused`; `defaults` (files: the protocol), `settings` (of all
    rows), `rows`, each with `name`, `method` (default: the name), `config` (files), `settings`, `pairs` and `quoted`;
    and `pairs` (files), with which each row is run for each of them, a row's own `pairs` having settings for some, by
    file name. Later settings win over earlier ones: defaults, pair, config, what the pair's file has `with` that one,
    the table's settings, the row's, the row's for a pair.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), TextLoader)
    except OSError as error:
        raise ValueError(f"--table {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--table {path} is not a YAML file: {error}") from error
    if not isinstance(content, dict) or not content.get("rows"):
        raise ValueError(f"--table {path} must have a title and rows")
    shared = {key: content.pop(key, None) for key in ("defaults", "settings", "pairs")}
    rows = [row for entry in content.pop("rows") for row in _rows(entry, path, **shared)]
    unknown = content.keys() - {f.name for f in fields(Table)} | content.keys() & {"name"}
    if unknown:
        raise ValueError(f"--table {path}: unknown key {min(unknown)!r}")
    given: dict[str, Any] = {"title": path.stem, "reference": rows[0].label} | content
    table = Table(name=path.stem, rows=tuple(rows), **given)
    _check(table, path)
    return table


def _check(table: Table, path: Path) -> None:
    names = [row.name for row in table.rows]
    folders = {row.folder for row in table.rows}
    if len(folders) < len(names):
        raise ValueError(
            f"--table {path}: two rows have the same name, or names that differ only in punctuation: "
            f"{names}; rename one"
        )
    labels = [row.label for row in table.rows]
    if table.reference not in labels:
        raise ValueError(f"--table {path}: reference {table.reference!r} is not a row: choose from {labels}")
    if table.measure not in MEASURES:
        raise ValueError(f"--table {path}: measure {table.measure!r} must be one of {list(MEASURES)}")


def _rows(entry: dict[str, Any], path: Path, defaults: Any, settings: dict[str, Any] | None, pairs: Any) -> list[Row]:
    """The rows of one entry: a single one, or one for each pair of networks."""
    unknown = entry.keys() - {"name", "method", "config", "settings", "pairs", "quoted"}
    if unknown or "name" not in entry:
        raise ValueError(f"--table {path}: row {entry}: {f'unknown key {min(unknown)!r}' if unknown else 'no name'}")
    found = []
    for pair in [path.parent / p for p in pairs] if pairs else [None]:
        config = [path.parent / c for c in entry.get("config") or ()]
        mine: list[Layer] = [entry.get("settings") or {}]
        if pair is not None:
            mine.append((entry.get("pairs") or {}).get(pair.stem, {}))
        first: list[Layer] = [*([pair] if pair else []), *config]
        layers = [*(path.parent / d for d in defaults or ()), *first, settings or {}, *mine]
        own = frozenset(key for of_one in read_layers([*first, *mine]) for one in of_one.values() for key in one)
        method, stem = entry.get("method", entry["name"]), None if pair is None else pair.stem
        found.append(Row(entry["name"], method, stem, tuple(layers), own, entry.get("quoted")))
    return found
