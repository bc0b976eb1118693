"""Reading of text files: the formats of `datasets`, and JSON lines with error messages that name the line."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from hfkd.data.splits import SPLITS, load_splits, refuse_patterns
from hfkd.data.stored_templates import refuse_unfinished

# The builder of `datasets` for each suffix; other files are read as JSON lines.
BUILDERS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}
# "utf-8-sig": a byte order mark, which Windows editors write, would otherwise be part of the first text.
# Of what pandas reads as a missing value, None, null and N/A may be texts or class names; pandas itself writes "".
TABLE: dict[str, Any] = {"keep_default_na": False, "na_values": ["", "NaN", "nan", "NA", "<NA>", "#N/A"]}
MORE = {".csv": TABLE, ".tsv": TABLE | {"sep": "\t"}, ".txt": {"encoding": "utf-8-sig"}}


def read_splits(name: str, config: str | None = None) -> dict[str, Dataset]:
    """The splits of a file (`train`), of a folder of JSON-lines files (by their names), of one of `_tables`, or as from
    `load_splits`.

    A file is JSON lines, or has the suffix .csv, .tsv, .parquet or .txt, where each line is a `text`. Raises ValueError
    for a folder that `hfkd generate` has not finished.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return {"train": read_file(path)}
    refuse_unfinished(path)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else []
    if len(files) == 1:
        return {"train": read_jsonl(files[0])}
    if files:
        return {file.stem: read_jsonl(file) for file in files}
    tables = _tables(path) if path.is_dir() else {}
    if tables and config is None:
        return {split: read_file(file) for split, file in tables.items()}
    return dict(load_splits(name, config))


def _tables(folder: Path) -> dict[str, Path]:
    """The .csv and .tsv files of a folder, by the splits that they are named after; none if it has other content."""
    files = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    named = {SPLITS.get(file.stem, ""): file for file in files if file.suffix in (".csv", ".tsv")}
    return named if len(named) == len(files) and "" not in named else {}


def read_file(path: Path) -> Dataset:
    """The rows of one file. Raises ValueError if it cannot be read."""
    builder = BUILDERS.get(path.suffix)
    if builder is None:
        return read_jsonl(path)
    refuse_patterns(path)
    more: dict[str, Any] = MORE.get(path.suffix, {})
    if path.suffix == ".tsv" and _has_plain_quotes(path):
        more = more | {"quoting": csv.QUOTE_NONE}
    try:
        return datasets.load_dataset(builder, data_files=str(path), split="train", **more)
    except Exception as error:  # datasets wraps any exception
        raise ValueError(f"{path} cannot be read as {path.suffix}: {error.__cause__ or error}") from error


def _has_plain_quotes(path: Path) -> bool:
    """Whether quotation marks in a .tsv are part of its texts (as in GLUE's files), and do not enclose line breaks.

    So it is if a field begins with one that has no end in its line, and yet all lines have the same number of fields:
    reading on to the next quotation mark would join many rows to one.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        lines = [line.removesuffix("\n").split("\t") for line in file if line.strip("\n")]
    counts = {len(fields) for fields in lines}
    opened = any(field.startswith('"') and field.count('"') % 2 for fields in lines for field in fields)
    return opened and len(counts) == 1 and counts != {1}


def read_jsonl(path: str | Path) -> Dataset:
    """The rows of a JSON-lines file, one object a line, through the `datasets` cache.

    The errors of `datasets` do not name the line; those of this function name file and line. Raises FileNotFoundError,
    and ValueError for a line that is not a JSON object or a file without rows.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: pass a JSON-lines file, with one object per line")
    refuse_patterns(path)
    _check_text(path)
    try:
        return datasets.load_dataset("json", data_files=str(path), split="train")
    except Exception as error:  # datasets wraps any exception; the usual reason is a broken line
        _raise_for_first_broken_line(path)
        raise ValueError(f"{path} cannot be read as JSON lines: {error.__cause__ or error}") from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, numbered from 1."""
    with path.open("rb") as file:
        yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())


def _check_text(path: Path) -> None:
    number = 0
    for number, line in _lines(path):
        try:
            line.decode()
        except UnicodeDecodeError as error:  # Arrow accepts such a line, and fails when the row is read
            raise ValueError(f"{path}, line {number}: not UTF-8 ({error}); save the file as UTF-8") from None
        if line.strip() == b"null":  # Arrow's reader crashes the process if there are no other lines
            raise ValueError(f"{path}, line {number}: null is not an object with named columns; delete the line")
    if number == 0:
        raise ValueError(f"{path} has no rows: pass a JSON-lines file, with one object per line")


def _raise_for_first_broken_line(path: Path) -> None:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); correct or delete the line") from None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number}: {str(row)[:20]!r} is not an object with named columns; correct or delete it"
            )
