"""Paired comparison of two methods over seeds: the mean difference and its confidence interval."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean over `seeds` of one method's value minus another's, with its Student's t interval.

    With d_s the difference of seed s, n of them:  mean(d) ± t(n - 1) sd(d) / sqrt(n).
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        text = f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"
        return text if self.shown else f"{text}, no difference shown"


def paired_difference(numbers: Mapping[int, float], others: Mapping[int, float]) -> Difference | None:
    """The difference of two methods' values by seed, over common seeds; None for fewer than two."""
    found = [numbers[seed] - others[seed] for seed in sorted(numbers.keys() & others.keys())]
    if len(found) < 2:
        return None
    mean, error = statistics.mean(found), statistics.stdev(found) / len(found) ** 0.5
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(found) - 1)) * error
    return Difference(mean, mean - reach, mean + reach, len(found))


def to_reference(row: Mapping[str, Any], reference: Mapping[str, Any] | None) -> Difference | None:
    """The difference of two rows of a table, in the accuracy after the last epoch."""
    if reference is None or reference is row:
        return None
    return paired_difference(by_seed(row), by_seed(reference))


def by_seed(row: Mapping[str, Any]) -> dict[int, float]:
    """The accuracy after the last epoch of each seed of a table's row."""
    return {seed: value for seed, value in zip(row["seeds"], row["last"]["values"], strict=True) if value is not None}
