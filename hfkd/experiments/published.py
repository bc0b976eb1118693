"""Numbers that papers report, each with its source: recipes/published.yaml is the one place for them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ANY = "any"  # a pair's network that a table does not name
ABOUT = ("source", "data", "epochs", "pairs", "teacher", "student")


@dataclass(frozen=True)
class PublishedNumber:
    """`value`, such as top-1 accuracy in percent, and the epochs it took, where they are known."""

    value: float
    source: str
    epochs: int | None


class Published:
    """What is known of published numbers. One that is not in the file is not at hand, and is never guessed.

    The file: `sources` (key -> what the number was read from), `teachers` (data -> network -> accuracy), and `numbers`,
    a list of `{source, data, epochs, teacher, student, accuracy: {method: percent}}`. With `pairs`, a list of "teacher
    > student", in place of the two, a method has a number for each; null where none is printed. Other measures than
    `accuracy` have names of their own. Raises ValueError for what does not fit.
    """

    def __init__(self, sources: dict[str, str], teachers: dict[str, dict[str, float]], numbers: list[dict[str, Any]]):
        self.sources, self.teachers = sources, teachers
        self._found: dict[tuple[str, ...], dict[str, PublishedNumber]] = {}
        for entry in numbers:
            if entry["source"] not in sources:
                raise ValueError(f"published number {entry}: its source is not among {sorted(sources)}; describe it")
            for key, value in _cells(entry):
                there = self._found.setdefault(key, {})
                if entry["source"] in there:
                    raise ValueError(f"published number {key} of {entry['source']} is there twice: keep one")
                there[entry["source"]] = PublishedNumber(value, entry["source"], entry.get("epochs"))

    @classmethod
    def read(cls, path: str | Path) -> "Published":
        return cls(**yaml.safe_load(Path(path).read_text(encoding="utf-8")))

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """(measure, data, teacher, student, method) of each number."""
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
        """The number of the first of `sources` (by default in the file's order) that has one; None: not at hand."""
        numbers = self.every(data, teacher, student, method, measure)
        return next((numbers[s] for s in (self.sources if sources is None else sources) if s in numbers), None)

    def every(
        self, data: str, teacher: str, student: str, method: str, measure: str = "accuracy"
    ) -> Mapping[str, PublishedNumber]:
        """By source all numbers of one cell."""
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
