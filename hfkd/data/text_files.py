"""Reading files of texts: any that `datasets` knows, and JSON lines so that a broken line is named."""

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
from datasets import Dataset

from hfkd.data.splits import load_splits, refuse_patterns

# Files that `datasets` reads by these names; whatever else is one file is taken for JSON lines.
BUILDERS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}


def read_splits(name: str, config: str | None = None) -> dict[str, Dataset]:
    """The splits of a file (`train`), of a folder of JSON lines (by the files' names), or as `load_splits` reads them.

    A file is JSON lines, or by its name .csv, .tsv, .parquet or .txt, of which each line is a `text`.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return {"train": read_file(path)}
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else []
    if len(files) == 1:
        return {"train": read_jsonl(files[0])}
    if files:
        return {file.stem: read_jsonl(file) for file in files}
    return dict(load_splits(name, config))


def read_file(path: Path) -> Dataset:
    """The rows of one file; ValueError for one that cannot be read."""
    builder = BUILDERS.get(path.suffix)
    if builder is None:
        return read_jsonl(path)
    refuse_patterns(path)
    more = {"sep": "\t"} if path.suffix == ".tsv" else {}
    try:
        return datasets.load_dataset(builder, data_files=str(path), split="train", **more)
    except Exception as error:  # datasets wraps whatever happened
        raise ValueError(f"{path} cannot be read as {path.suffix}: {error.__cause__ or error}") from error


def read_jsonl(path: str | Path) -> Dataset:
    """The rows of a JSON-lines file, one object a line, through the `datasets` cache.

    `datasets` says that generating failed, and counts rows from its own block: here the error names file and line.
    Raises FileNotFoundError, and ValueError for a line that is not a JSON object or a file without rows.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give a JSON-lines file, one object a line")
    refuse_patterns(path)
    _check_text(path)
    try:
        return datasets.load_dataset("json", data_files=str(path), split="train")
    except Exception as error:  # datasets wraps whatever happened; a broken line is the usual reason
        _raise_for_first_broken_line(path)
        raise ValueError(f"{path} cannot be read as JSON lines: {error.__cause__ or error}") from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, numbered from 1."""
    with path.open("rb") as file:
        yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())


def _check_text(path: Path) -> None:
    number = 0
    for number, line in _lines(path):
        try:
            line.decode()
        except UnicodeDecodeError as error:  # Arrow takes such a line, and fails when somebody reads the row
            raise ValueError(f"{path}, line {number}: not UTF-8 ({error}); save the file as UTF-8") from None
        if line.strip() == b"null":  # Arrow's reader takes the process down when it meets nothing else
            raise ValueError(f"{path}, line {number}: null, not an object with named columns; delete the line")
    if number == 0:
        raise ValueError(f"{path} holds no rows: give a JSON-lines file, one object a line")


def _raise_for_first_broken_line(path: Path) -> None:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); repair or delete the line") from None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number}: {str(row)[:20]!r} is no object with named columns; repair or delete it"
            )
