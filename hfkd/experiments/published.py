"""Published results, each with its source, read from recipes/published.yaml."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ANY = "any"  # stands for any network of a pair
ABOUT = ("source", "data", "epochs", "pairs", "teacher", "student")


@dataclass(frozen=True)
class PublishedNumber:
    """`value`, such as top-1 accuracy in percent, and the number of epochs, if known."""

    value: float
    source: str
    epochs: int | None


class Published:
    """The published numbers of a file. Missing numbers are never estimated.

    The file has `sources` (key -> where the number was read), `teachers` (data -> network -> accuracy), and `numbers`,
    a list of `{source, data, epochs, teacher, student, accuracy: {method: percent}}`. With `pairs`, a list of "teacher
    > student", instead of teacher and student, a method has a number for each pair; null if none is printed. Other
    measures have other names than `accuracy`. Raises ValueError for inconsistent entries.
    """

    def __init__(self, sources: dict[str, str], teachers: dict[str, dict[str, float]], numbers: list[dict[str, Any]]):
        self.sources, self.teachers = sources, teachers
        self._found: dict[tuple[str, ...], dict[str, PublishedNumber]] = {}
        for entry in numbers:
            if entry["source"] not in sources:
                raise ValueError(
                    f"published number {entry}: its source is not among {sorted(sources)}: add it to sources"
                )
            for key, value in _cells(entry):
                there = self._found.setdefault(key, {})
                if entry["source"] in there:
                    raise ValueError(f"published number {key} of {entry['source']} is listed twice: keep one")
                there[entry["source"]] = PublishedNumber(value, entry["source"], entry.get("epochs"))

    @classmethod
    def read(cls, path: str | Path) -> "Published":
        return cls(**yaml.safe_load(Path(path).read_text(encoding="utf-8")))

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """The key (measure, data, teacher, student, method) of each number."""
        return list(self._found)

    def find(
        self,
        data: str,
        teacher: str,
        student: str,
        method: str,
        sources: Sequence[str] | None = None,
        measure: str = "accuracy",
    ) -> PublishedNumber | None:
        """The number from the first of `sources` (default: in the file's order) that has one; None if there is none."""
        numbers = self.every(data, teacher, student, method, measure)
        return next((numbers[s] for s in (self.sources if sources is None else sources) if s in numbers), None)

    def every(
        self, data: str, teacher: str, student: str, method: str, measure: str = "accuracy"
    ) -> Mapping[str, PublishedNumber]:
        """All numbers of a cell, by source."""
        anyones = self._found.get((measure, data, ANY, ANY, method), {})
        return anyones | self._found.get((measure, data, teacher, student, method), {})


def _cells(entry: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], float]]:
    """(measure, data, teacher, student, method) and the number."""
    pairs = [tuple(pair.split(" > ")) for pair in entry.get("pairs", ())]
    for measure in sorted(entry.keys() - set(ABOUT)):
        for method, values in entry[measure].items():
            if not pairs:
                yield (measure, entry["data"], entry["teacher"], entry["student"], method), values
                continue
            if len(values) != len(pairs):
                raise ValueError(f"published numbers of {entry['source']}, {method}: {values} for the pairs {pairs}")
            for pair, value in zip(pairs, values, strict=True):
                if value is not None:
                    yield (measure, entry["data"], *pair, method), value
