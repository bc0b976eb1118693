"""Growth of time with a size: the exponent p of time ~ size^p."""

import math
import statistics
from dataclasses import dataclass

LINEAR = (0.9, 1.1)  # exponents of the last doubling that count as linear


@dataclass(frozen=True)
class Growth:
    """`seconds` of a step at each of `sizes`, ascending. Raises ValueError for fewer than two sizes."""

    axis: str
    sizes: list[int]
    seconds: list[float]

    def __post_init__(self) -> None:
        check_sizes(self.axis, self.sizes)
        if len(self.seconds) != len(self.sizes) or not all(s > 0 for s in self.seconds):
            raise ValueError(f"{self.axis}: seconds {self.seconds} must be above 0, one for each of {self.sizes}")

    @property
    def exponent(self) -> float:
        """The least-squares slope of log(time) over log(size)."""
        logs = ([math.log(value) for value in values] for values in (self.sizes, self.seconds))
        return statistics.linear_regression(*logs).slope

    @property
    def last_exponent(self) -> float:
        """The exponent of the last two points: log(time ratio) / log(size ratio)."""
        return math.log(self.last_growth) / math.log(self.sizes[-1] / self.sizes[-2])

    @property
    def last_growth(self) -> float:
        """The last point's time over that of the one before."""
        return self.seconds[-1] / self.seconds[-2]

    @property
    def verdict(self) -> str:
        if self.last_exponent < LINEAR[0]:
            return "below linear, part of the cost is fixed"
        return "linear" if self.last_exponent <= LINEAR[1] else "above linear"

    @property
    def sentence(self) -> str:
        *_, before, last = self.sizes
        return (
            f"{self.axis} {self.sizes[0]:,} to {last:,}: time grows as size^{self.exponent:.2f}, linear would be 1; "
            f"{before:,} to {last:,}: {self.last_growth:.2f} times, size^{self.last_exponent:.2f}: {self.verdict}"
        )


def check_sizes(axis: str, sizes: list[int]) -> None:
    if len(sizes) < 2 or sizes != sorted(set(sizes)) or sizes[0] < 1:
        raise ValueError(f"{axis}: sizes {sizes} must be two or more, ascending, from 1 on: growth is between them")
