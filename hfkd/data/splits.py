"""The splits of a local folder, from the names of its top-level folders only."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.data_files import SPLIT_KEYWORDS, EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import DatasetCard

from hfkd.utils.json_file import read_json

logger = logging.getLogger(__name__)

SPLITS = {keyword: str(split) for split, keywords in SPLIT_KEYWORDS.items() for keyword in keywords}
TABLES = ("parquet", "arrow")  # builders that take the features of all files from the first
NOT_DATA = re.compile(r"(readme|licen[cs]e).*|.*\.(md|ya?ml|py)", re.IGNORECASE)


def load_splits(name_or_path: str, name: str | None = None, streaming: bool = False) -> Any:
    """All splits of a Hub id, as in `datasets`, or of a local folder, by the names of its folders (`split_files`).

    A folder may also be one that `save_to_disk` wrote. Raises ValueError for a folder without data, for files that
    would be in two splits, and for tables that number their classes differently.
    """
    path = Path(name_or_path).expanduser()
    try:
        if not path.is_dir():
            return datasets.load_dataset(name_or_path, name, streaming=streaming)
        refuse_patterns(path)
        base, files = split_files(path, name)
        saved = _saved_files(path)
        if saved is not None:
            source, name, files = "arrow", None, saved
        else:
            source = str(base)
            if files is None:
                refuse_shared_files(path, name)
        loaded = datasets.load_dataset(source, name, data_files=files, streaming=streaming)
        if any(split.info.builder_name in TABLES for split in loaded.values()):
            refuse_other_classes(_features_of_tables(source, name, files))
        return loaded
    except (EmptyDatasetError, DataFilesNotFoundError) as error:
        raise ValueError(f"{name_or_path} has no readable data: pass the folder with the files") from error
    except FileNotFoundError as error:  # the part of the name before "::"
        if error.filename is None:
            raise ValueError(f"{name_or_path} cannot be read: {error}; pass a Hub id, a folder or a file") from error
        raise ValueError(
            f"{name_or_path} cannot be read: {error.filename} does not exist. `datasets` reads a name with '::' as a "
            "file in an archive: rename files and folders with '::' in their name"
        ) from error
    except RuntimeError as error:  # a loading script, which is never run
        raise ValueError(f"{name_or_path} cannot be read: {error}; pass a dataset that is stored as files") from error


def split_files(folder: Path, name: str | None = None) -> tuple[Path, dict[str, list[str]] | None]:
    """The data folder in `folder`, and the files of each split as patterns for `datasets` (None: left to `datasets`).

    Folders named train, val, test, ... (the keywords of `datasets`, in upper or lower case, with numbers: val2017) are
    the splits, at the top level or below a single folder. Class folders that are not below such folders are all for
    training. Files without such folders, and a folder whose card lists the files of its configurations (`name`), are
    left to `datasets`. `datasets` itself searches for the keywords anywhere in a path, so that a class "test-tube"
    would be in the test split.
    """
    if name is not None or _names_its_files(folder):
        return folder, None
    base = folder
    while True:
        tops, files = _content(base)
        found: dict[str, list[str]] = {}
        for top in tops:
            split = SPLITS.get(re.sub(r"^[-._ 0-9]+|[-._ 0-9]+$", "", top.name).casefold())
            if split is not None:
                found.setdefault(split, []).append(f"{top.name}/**")
        if found:
            others = [top.name for top in tops if not any(f"{top.name}/**" in patterns for patterns in found.values())]
            if others:
                logger.info("In %s the folders %s are not splits, and are ignored", base, others)
            return base, found
        if files or not tops:
            return folder, None
        if len(tops) > 1 or _has_images(tops[0]):
            return (base, {"train": ["**"]}) if all(map(_has_images, tops)) else (folder, None)
        base = tops[0]


def refuse_patterns(path: Path) -> None:
    """Raise ValueError for a path that `datasets` would read as a pattern, which would match nothing or other files."""
    real = os.path.realpath(path)
    signs = [sign for sign in ("::", "*", "?", "[") if sign in real]
    if signs:
        raise ValueError(
            f"{real} has {signs[0]!r} in its path, which `datasets` reads as a pattern: rename the file or folder"
        )


def refuse_shared_files(folder: Path, name: str | None) -> None:
    """Raise ValueError if `datasets`, which finds splits by file names, would put a file into two splits."""
    found: Any = datasets.load_dataset_builder(str(folder), name).config.data_files or {}
    owner: dict[str, str] = {}
    for split, files in found.items():
        for file in map(str, files):
            other = owner.setdefault(file, str(split))
            if other != str(split):
                raise ValueError(
                    f"{file} would be in both {other!r} and {str(split)!r}, because of the words in its name: put the "
                    "files of each split into separate folders train, test, ..."
                )


def _saved_files(folder: Path) -> dict[str, list[str]] | None:
    """The Arrow files of each split of a folder of `save_to_disk` (of one dataset: train); None for any other.

    `load_from_disk` would write the results of `map` into the folder.
    """
    if (folder / "dataset_dict.json").is_file():
        parts = {name: folder / name for name in read_json(folder / "dataset_dict.json")["splits"]}
    elif (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        parts = {"train": folder}
    else:
        return None
    return {
        name: [str(part / file["filename"]) for file in read_json(part / "state.json")["_data_files"]]
        for name, part in parts.items()
    }


def _features_of_tables(source: str, name: str | None, files: dict[str, list[str]] | None) -> dict[str, Any]:
    """The features of each Arrow and Parquet file."""
    found: Any = datasets.load_dataset_builder(source, name, data_files=files).config.data_files or {}
    local = [str(file) for part in found.values() for file in part if os.path.isfile(file)]
    return {file: datasets.Features.from_arrow_schema(_schema(file)) for file in local}


def _schema(file: str) -> Any:
    if not file.endswith(".arrow"):
        return pq.read_schema(file)
    with open(file, "rb") as content:
        return pa.ipc.open_stream(content).schema


def refuse_other_classes(features: Mapping[str, Any]) -> None:
    """Raise ValueError if a file numbers classes differently from the first, by whose names all would be read."""
    first: dict[str, tuple[str, list[str]]] = {}
    for owner, columns in features.items():
        for column, feature in columns.items():
            inner = getattr(feature, "feature", feature)  # of a list: the classes of words
            if not isinstance(inner, datasets.ClassLabel):
                continue
            before, names = first.setdefault(column, (owner, inner.names))
            if names != inner.names:
                raise ValueError(
                    f"{owner} has the classes {inner.names[:8]} in the column {column!r}, and {before} {names[:8]}: "
                    "one label would be two classes; write both with the same ClassLabel feature (in datasets: "
                    "align_labels_with_mapping)"
                )


def _names_its_files(folder: Path) -> bool:
    card = folder / "README.md"
    return card.is_file() and bool(DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict().get("configs"))


def _content(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the data files of a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        shown = [(Path(e.path), e.is_dir()) for e in entries if not e.name.startswith((".", "__"))]
    tops = sorted(path for path, is_folder in shown if is_folder)
    return tops, [path for path, is_folder in shown if not is_folder and not NOT_DATA.fullmatch(path.name)]


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(os.path.splitext(entry.name)[1].lower() in ImageFolder.EXTENSIONS for entry in entries)
