"""Accuracies that papers report, each with its source: recipes/published.yaml is the one place for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class PublishedNumber:
    """`accuracy` in percent, top-1, and the epochs it took, where they are known."""

    accuracy: float
    source: str
    epochs: int | None


class Published:
    """What is known of published accuracies. A number that is not in the file is not at hand, and is never guessed.

    The file: `sources` (key -> what the number was read from), `teachers` (data -> network -> accuracy), and `numbers`,
    a list of `{source, data, epochs, teacher, student, accuracy: {method: percent}}`.
    """

    def __init__(self, sources: dict[str, str], teachers: dict[str, dict[str, float]], numbers: list[dict[str, Any]]):
        self.sources, self.teachers, self.numbers = sources, teachers, numbers
        for entry in numbers:
            if entry["source"] not in sources:
                raise ValueError(f"published number {entry}: its source is not among {sorted(sources)}; describe it")

    @classmethod
    def read(cls, path: str | Path) -> "Published":
        return cls(**yaml.safe_load(Path(path).read_text(encoding="utf-8")))

    def find(
        self, data: str, teacher: str, student: str, method: str, sources: Sequence[str] | None = None
    ) -> PublishedNumber | None:
        """The number of the first of `sources` (by default in the file's order) that has one; None: not at hand."""
        for source in self.sources if sources is None else sources:
            for entry in self.numbers:
                pair = (entry["source"], entry["data"], entry["teacher"], entry["student"])
                if pair == (source, data, teacher, student) and method in entry["accuracy"]:
                    return PublishedNumber(entry["accuracy"][method], source, entry.get("epochs"))
        return None
