"""The figure of a table: the accuracy of each row by epoch, and its difference to the reference row."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hfkd.experiments.paired import by_seed, to_reference
from hfkd.experiments.resume import Run
from hfkd.experiments.summary import pair_of, reference_rows
from hfkd.reports import style
from hfkd.reports.figures import percent_scale
from hfkd.reports.history import series
from hfkd.reports.page import METRIC
from hfkd.reports.style import Axes, Figure, literal, say_empty, styled

WIDTH, PANEL, LINE = 10.5, 2.6, 0.2  # inches: of the figure, of a pair of networks, and of each of its rows


@styled
def table_figure(rows: Sequence[Mapping[str, Any]], runs: Sequence[Sequence[Run]], reference: str) -> Figure:
    """Two panels for each pair of teacher and student; `rows` as in table.json, `runs`: those of each row.

    Left: accuracy by epoch, the mean of the seeds, with a band from the lowest to the highest seed. Right: the accuracy
    after the last epoch less that of `reference`, a dot per seed and the 95 % interval of the mean.
    """
    from matplotlib.figure import Figure

    references, pairs = reference_rows(rows, reference), list(dict.fromkeys(map(pair_of, rows)))
    grouped = [[(row, its) for row, its in zip(rows, runs, strict=True) if pair_of(row) == pair] for pair in pairs]
    heights = [PANEL + LINE * len(group) for group in grouped]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    panels = figure.subplots(len(pairs), 2, squeeze=False, height_ratios=heights)
    for (left, right), pair, group in zip(panels, pairs, grouped, strict=True):
        looks = list(zip(group, style.looks(style.LINES, linestyle=("-", "--", ":", "-.")), strict=False))
        for (row, its), look in looks:
            _by_epoch(left, its, label=literal(row["method"]), **look)
        left.set(title=f"{literal(pair)}: accuracy (%)", xlabel="epoch")
        left.legend(fontsize=8) if left.lines else say_empty(left, "no accuracy was evaluated")
        _differences(right, [(row, look["color"]) for (row, _), look in looks], references.get(pair), reference)
    return figure


def _by_epoch(axes: Axes, runs: Sequence[Run], color: str, **look: Any) -> None:
    """The mean curve of the seeds, over the epochs at which all were evaluated."""
    epochs_of = [run.results["epochs"] for run in runs if run.status == "finished"]
    curves = [dict(zip(*series(epochs, METRIC), strict=True)) for epochs in epochs_of]
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    if not epochs:
        return
    values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])  # [seeds, epochs]
    values *= percent_scale(values.flat)
    axes.plot(epochs, values.mean(0), marker="o" if len(epochs) <= 12 else None, color=color, **look)
    axes.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.12, linewidth=0)


def _differences(
    axes: Axes, rows: Sequence[tuple[Mapping[str, Any], str]], reference: Mapping[str, Any] | None, name: str
) -> None:
    axes.set_title(f"after the last epoch, less {literal(name)} (points)")
    others = {} if reference is None else by_seed(reference)
    shown = [(row, color) for row, color in rows if row is not reference and by_seed(row).keys() & others.keys()]
    if not shown:
        say_empty(axes, f"no two rows with the same seed, one of them {literal(name)}")
        return
    for place, (row, color) in enumerate(shown):
        mine = by_seed(row)
        points = [mine[seed] - others[seed] for seed in sorted(mine.keys() & others.keys())]
        if (found := to_reference(row, reference)) is not None:
            ends = [[found.mean - found.low], [found.high - found.mean]]
            axes.errorbar(found.mean, place, xerr=ends, fmt="D", color=color if found.shown else style.GREY, capsize=3)
        axes.plot(points, [place] * len(points), "o", color=color)
    axes.axvline(0, color=style.INK, linewidth=1)
    axes.set_yticks(range(len(shown)), [literal(row["method"]) for row, _ in shown])
    axes.set_xlabel("dots: seeds; diamond and bar: mean and 95 % interval,\ngrey where it covers 0")
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
