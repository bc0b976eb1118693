"""A folder of generated responses, complete or in parts, with the settings they belong to."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from hfkd.data.stored_templates import OTHER_VERSION, RESPONSES
from hfkd.teachers.fingerprint import changed_setting
from hfkd.utils import formats
from hfkd.utils.files import checksum, write_atomically
from hfkd.utils.json_file import json_lines, read_json, write_json

logger = logging.getLogger(__name__)

PARTS = "parts"
FOR_PEOPLE = ("model", "dataset")  # names for display, which do not identify weights or rows
TOLD = (*FOR_PEOPLE, "chat_template")  # not compared; the hash of the prompts has the template in it
Row = dict[str, Any]


class ResponseFolder:
    """`train.jsonl` and the other splits of a dataset, written when all parts are complete; and `responses.json`.

    `settings`: those that determine the responses; a folder started with others is refused. `filters` select responses,
    and may change until the splits are written.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], filters: Mapping[str, Any]) -> None:
        self.folder, self.settings, self.filters = Path(folder).expanduser(), dict(settings), dict(filters)
        self.counts: dict[str, int] = {}  # of a complete folder

    @property
    def begun(self) -> bool:
        """Whether there are settings, of this run or another."""
        return (self.folder / RESPONSES).is_file()

    def begin(self) -> bool:
        """Whether the folder is already complete; if not, write the settings. Raises ValueError for another folder."""
        found = self._found()
        if found is None or "counts" not in found:
            write_json(self.folder / RESPONSES, self._named())
            return False
        self.counts = found["counts"]
        if checksum(self.folder / "train.jsonl") != found["checksum"]:
            raise ValueError(
                f"{self.folder / 'train.jsonl'} was changed or damaged after it was written: delete the folder, "
                "or choose another output_dir"
            )
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)  # left over if a run was stopped at its very end
        return True

    def _found(self) -> dict[str, Any] | None:
        path = self.folder / RESPONSES
        if not self.begun:
            others = sorted(p.name for p in self.folder.glob("*") if not p.name.startswith("."))
            if others:
                raise ValueError(
                    f"output_dir={self.folder} already has other files ({', '.join(others[:3])}): choose an empty "
                    "or a new folder"
                )
            return None
        try:
            found = read_json(path)
            stored = found["settings"] | (found["filters"] if "counts" in found else self.filters)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error!r}): delete the folder, or choose another") from error
        formats.refuse_other_version(path, found, formats.RESPONSES, OTHER_VERSION)
        mine = json.loads(json.dumps(self.settings | self.filters))
        for name in mine:
            if name not in (*TOLD, "config") and stored.get(name) != mine[name]:
                raise ValueError(
                    f"{self.folder} contains other responses: their {name} is {stored.get(name)!r} "
                    f"({self._whose(stored)}), that of this run is {mine[name]!r} ({self._whose(mine)}); choose "
                    "another output_dir, or delete that folder"
                )
        fault = changed_setting(stored.get("config", {}), mine.get("config", {}))
        if fault is not None:
            raise ValueError(f"{self.folder} contains responses of another model: {fault}; choose another output_dir")
        return found

    def _named(self) -> dict[str, Any]:
        return formats.with_version({"settings": self.settings, "filters": self.filters}, formats.RESPONSES)

    @staticmethod
    def _whose(settings: Mapping[str, Any]) -> str:
        return ", ".join(str(settings.get(name)) for name in FOR_PEOPLE)

    def part(self, number: int) -> list[Row] | None:
        """The rows of a part; None if it is missing or damaged."""
        path = self._path(number)
        try:
            *lines, end = path.read_bytes().splitlines(keepends=True)
        except (FileNotFoundError, ValueError):
            return None
        if end != _tag(b"".join(lines)):
            logger.warning("%s is damaged and is generated again", path)
            return None
        return [json.loads(line) for line in lines]

    def write_part(self, number: int, rows: Sequence[Row]) -> None:
        content = json_lines(rows)
        write_atomically(self._path(number), content + _tag(content))

    def _path(self, number: int) -> Path:
        return self.folder / PARTS / f"part-{number:05d}.jsonl"

    def renew(self, splits: Mapping[str, Sequence[Row]]) -> None:
        """Write the splits of a complete folder again that the dataset, which they are copied from, has otherwise."""
        for name, rows in splits.items():
            path, content = self.folder / f"{name}.jsonl", json_lines(rows)
            if not path.is_file() or path.read_bytes() != content:
                logger.warning("%s is not this split of the dataset, and is written again", path)
                write_atomically(path, content)

    def finish(self, splits: Mapping[str, Sequence[Row]], counts: Mapping[str, int]) -> None:
        """Write the splits, `train` last, then `counts`, and delete the parts."""
        for name in sorted(splits, key=lambda name: name == "train"):
            write_atomically(self.folder / f"{name}.jsonl", json_lines(splits[name]))
        done = {"counts": dict(counts), "checksum": checksum(self.folder / "train.jsonl")}
        write_json(self.folder / RESPONSES, self._named() | done)
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)


def _tag(content: bytes) -> bytes:
    return f"{xxhash.xxh3_128_hexdigest(content)}\n".encode()
