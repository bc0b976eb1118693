"""What a table compares: rows that are settings, read from a YAML file."""

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
    """One line of a table. `layers` are settings or files of them, the later ones winning; `own` names those settings
    that make the row what it is; `method` is what the published numbers call it, `pair` the file of its networks.
    `quoted`: why nothing is run, of a row that shows a published number alone.
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
    """`reference` is the row, of each pair, whose images per second are 1; `published`: the sources looked up, first
    ones first; `measure`: what the table shows, accuracies or the losses of a short run.
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
        """The rows that are run."""
        return tuple(row for row in self.rows if row.quoted is None)


def read_table(path: str | Path) -> Table:
    """A table from its file. Paths in it are relative to the file. Raises ValueError for what it does not understand.

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
        raise ValueError(f"--table {path} must hold a title and rows")
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
        raise ValueError(f"--table {path}: two rows have one name, or names that differ in signs alone: {names}")
    labels = [row.label for row in table.rows]
    if table.reference not in labels:
        raise ValueError(f"--table {path}: reference {table.reference!r} is none of the rows {labels}")
    if table.measure not in MEASURES:
        raise ValueError(f"--table {path}: measure {table.measure!r} must be one of {list(MEASURES)}")


def _rows(entry: dict[str, Any], path: Path, defaults: Any, settings: dict[str, Any] | None, pairs: Any) -> list[Row]:
    """The rows of one entry: itself, or one for each pair of networks."""
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
