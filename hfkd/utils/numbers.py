"""Shared rules for rounding and formatting numbers."""

from collections.abc import Mapping, Sequence

# Statistics of CIFAR-100's training images, with which published checkpoints were trained.
CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def floor_of_share(count: int, share: float) -> int:
    """floor(N r), rounded first so that 0.29 * 100 gives 29."""
    return int(round(count * share, 9))


def for_log(numbers: Mapping[str, float]) -> dict[str, float]:
    """The numbers with six significant digits: six decimals would leave nothing of small ones."""
    return {name: float(f"{number:.6g}") for name, number in numbers.items()}


def evenly_spread(few: int, many: int) -> list[int]:
    """`few` of the numbers 0 to `many` - 1, including the first and the last: round(i (many - 1) / (few - 1))."""
    return [round(i * (many - 1) / max(few - 1, 1)) for i in range(few)]


def with_deviation(mean: float, deviation: float | None, digits: int = 2) -> str:
    """ "75.31 ± 0.12": a mean and its standard deviation; None: the mean alone."""
    return f"{mean:.{digits}f}" if deviation is None else f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(markdown_row(line) for line in [header, ["---"] * len(header), *rows])


def markdown_row(cells: Sequence[str]) -> str:
    """A row of a Markdown table, in which a bar of a name begins no cell."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
