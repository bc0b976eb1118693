"""Comparison of methods for the same student: a table for the terminal and a section for the page."""

import statistics
from dataclasses import dataclass, field

from hfkd.reports.figures import comparison_bars
from hfkd.reports.html import Section
from hfkd.utils.numbers import markdown_table


@dataclass
class Comparison:
    """Accuracies (fractions) and seconds of each method ("way"), one of each per seed."""

    accuracy: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, way: str, accuracy: float, seconds: float) -> None:
        self.accuracy.setdefault(way, []).append(accuracy)
        self.seconds.setdefault(way, []).append(seconds)

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Method, mean accuracy and sample standard deviation in percent, number of seeds, seconds per run."""
        return [
            (
                way,
                f"{100 * statistics.mean(values):.2f}",
                f"{100 * statistics.stdev(values):.2f}" if len(values) > 1 else "-",
                str(len(values)),
                f"{statistics.mean(self.seconds[way]):.1f}",
            )
            for way, values in self.accuracy.items()
        ]

    HEADER = ("way", "accuracy %", "sd", "seeds", "seconds")

    def markdown(self) -> str:
        return markdown_table(self.HEADER, self.rows())

    def section(self, text: str) -> Section:
        points = [
            (way, 100 * statistics.mean(v), 100 * statistics.stdev(v) if len(v) > 1 else None, [100 * x for x in v])
            for way, v in self.accuracy.items()
        ]
        said = "\n\n".join(part for part in (text, self.within_spread()) if part)
        return Section("Comparison", said, comparison_bars(points), table=(self.HEADER, self.rows()))

    def within_spread(self) -> str:
        """A sentence if the methods differ by less than the seeds of one of them; else an empty string."""
        several = [values for values in self.accuracy.values() if len(values) > 1]
        if len(several) < 2 or len(several) < len(self.accuracy):
            return ""
        means, spread = [100 * statistics.mean(v) for v in several], max(100 * statistics.stdev(v) for v in several)
        if max(means) - min(means) > spread:
            return ""
        return (
            f"All ways lie within the spread of the seeds: the best mean is {max(means) - min(means):.2f} points above "
            f"the worst, and one way's seeds have a standard deviation of {spread:.2f}. No difference is shown."
        )
