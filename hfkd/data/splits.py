"""Which files of a local folder are which split: said by the folders at its top alone, not by words further down."""

import logging
import os
import re
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import SPLIT_KEYWORDS, EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import DatasetCard

logger = logging.getLogger(__name__)

SPLITS = {keyword: str(split) for split, keywords in SPLIT_KEYWORDS.items() for keyword in keywords}
NOT_DATA = re.compile(r"(readme|licen[cs]e).*|.*\.(md|ya?ml|py)", re.IGNORECASE)


def load_splits(name_or_path: str, name: str | None = None, streaming: bool = False) -> Any:
    """All splits of a Hub id, as `datasets` gives them, or of a local folder, as its folders say (`split_files`).

    ValueError for a folder without data, and for files that would be in two splits.
    """
    path = Path(name_or_path).expanduser()
    try:
        if not path.is_dir():
            return datasets.load_dataset(name_or_path, name, streaming=streaming)
        refuse_patterns(path)
        base, files = split_files(path, name)
        if files is None:
            refuse_shared_files(path, name)
        return datasets.load_dataset(str(base), name, data_files=files, streaming=streaming)
    except (EmptyDatasetError, DataFilesNotFoundError) as error:
        raise ValueError(
            f"{name_or_path} holds no data that can be read: give the folder that has the files"
        ) from error
    except FileNotFoundError as error:  # what comes before the "::"
        if error.filename is None:
            raise ValueError(f"{name_or_path} cannot be read: {error}; give a Hub id, a folder or a file") from error
        raise ValueError(
            f"{name_or_path} cannot be read: there is no {error.filename}; `datasets` takes a name with '::' for a "
            "file in an archive, so rename files and folders that have it"
        ) from error
    except RuntimeError as error:  # a program that makes the data, which is never run
        raise ValueError(f"{name_or_path} cannot be read: {error}; give a data set stored as files") from error


def split_files(folder: Path, name: str | None = None) -> tuple[Path, dict[str, list[str]] | None]:
    """Where the data of `folder` are, and each split's files as patterns for `datasets`; None: left to `datasets`.

    Left to it are files without such folders, and a folder whose card names the files of its configurations (`name`).

    Folders called train, val, test, ... (`datasets`' own words, in any case, with numbers: val2017) are the splits, at
    the top or below the only folder there. Class folders without such folders above them are all for training.
    `datasets` itself looks for those words anywhere in a path, and so takes a class "test-tube" for test images.
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
                logger.info("In %s the folders %s are no splits and are left out", base, others)
            return base, found
        if files or not tops:
            return folder, None
        if len(tops) > 1 or _has_images(tops[0]):
            return (base, {"train": ["**"]}) if all(map(_has_images, tops)) else (folder, None)
        base = tops[0]


def refuse_patterns(path: Path) -> None:
    """Raise ValueError for a path that `datasets` takes for a pattern: it would find nothing, or other files too."""
    real = os.path.realpath(path)
    signs = [sign for sign in ("::", "*", "?", "[") if sign in real]
    if signs:
        raise ValueError(
            f"{real} has {signs[0]!r} in its path, which `datasets` takes for more than a name: rename that file or "
            "folder"
        )


def refuse_shared_files(folder: Path, name: str | None) -> None:
    """Raise ValueError where `datasets`, left to find the splits by the names of files, puts a file into two."""
    found: Any = datasets.load_dataset_builder(str(folder), name).config.data_files or {}
    owner: dict[str, str] = {}
    for split, files in found.items():
        for file in map(str, files):
            other = owner.setdefault(file, str(split))
            if other != str(split):
                raise ValueError(
                    f"{file} would be in both {other!r} and {str(split)!r}, by the words in its name: put the files of "
                    "each split into a folder of its own, train, test, ..."
                )


def _names_its_files(folder: Path) -> bool:
    card = folder / "README.md"
    return card.is_file() and bool(DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict().get("configs"))


def _content(folder: Path) -> tuple[list[Path], list[Path]]:
    """Its folders and its files of data; hidden ones do not count."""
    with os.scandir(folder) as entries:
        shown = [(Path(e.path), e.is_dir()) for e in entries if not e.name.startswith((".", "__"))]
    tops = sorted(path for path, is_folder in shown if is_folder)
    return tops, [path for path, is_folder in shown if not is_folder and not NOT_DATA.fullmatch(path.name)]


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(os.path.splitext(entry.name)[1].lower() in ImageFolder.EXTENSIONS for entry in entries)
