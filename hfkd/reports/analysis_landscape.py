"""A section of the analysis page: the loss landscape around each student, and the share of low loss.

P points per side.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hfkd.evaluation.analysis.landscape import LEVEL, Landscape
from hfkd.reports import style
from hfkd.reports.analysis_figures import panels, student_looks
from hfkd.reports.html import Section
from hfkd.reports.style import Figure, as_array, new_figure, styled


@styled
def landscape_lines(students: Mapping[str, Landscape]) -> Figure:
    """Losses [P] along one direction, on a log axis."""
    figure, (axes,) = new_figure(8.4, 3.6)
    for (name, one), look in zip(students.items(), student_looks(), strict=False):
        axes.plot(as_array(one.coordinates), as_array(one.losses), label=name, **look)
    axes.axhline(LEVEL, color=style.ORANGE, linewidth=1, linestyle="--", label=f"loss {LEVEL:g}")
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    axes.set(xlabel="step along a filter-normalised random direction", ylabel="cross-entropy")
    axes.legend()
    return figure


@styled
def landscape_maps(students: Mapping[str, Landscape]) -> Figure:
    """Losses [P, P] along two directions, on a common logarithmic colour scale, with a contour line at LEVEL."""
    from matplotlib.colors import LogNorm

    losses = {name: as_array(one.losses) for name, one in students.items()}
    known = np.concatenate([array[np.isfinite(array) & (array > 0)] for array in losses.values()])
    low, high = (known.min(), known.max()) if len(known) else (0.1, 10.0)
    norm = LogNorm(low, max(high, 1.01 * low))
    figure, grid = panels(len(students), 3.0)
    shown: Any = None
    for axes, (name, one) in zip(grid, students.items(), strict=False):
        at = as_array(one.coordinates)
        shown = axes.pcolormesh(at, at, losses[name], norm=norm, cmap="viridis", shading="nearest", rasterized=True)
        if losses[name].min() < LEVEL < losses[name].max():
            axes.contour(at, at, losses[name], levels=[LEVEL], colors=[style.ORANGE], linewidths=1.5)
        axes.set(title=name, xlabel="second direction", ylabel="first direction", aspect="equal")
        axes.grid(visible=False)
    bar = figure.colorbar(shown, ax=grid[: len(students)], label="cross-entropy", shrink=0.8)
    _plain_numbers(bar.ax.yaxis)
    return figure


def _plain_numbers(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers (4 instead of 4 x 10^0), as many as fit."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter())


def landscape_section(students: Mapping[str, Landscape], images: int) -> Section:
    one = next(iter(students.values()))
    flat = one.losses.ndim == 1
    text = (
        f"Cross-entropy of {images:,} images with the parameters moved along {'a' if flat else 'two'} random "
        f"direction{'' if flat else 's'}, filter-normalised (Li et al., 2018; biases and norms stay), at "
        f"{one.losses.numel()} points from {one.coordinates[0]:g} to {one.coordinates[-1]:g}. The random numbers and "
        f"the images are the same for all students. The orange line is at a loss of {LEVEL:g}.\n\nVariance: of the "
        f"losses at all points. Area@{LEVEL:g}: the share of the points whose loss is at most {LEVEL:g}; EA-KD reports "
        "a number of that name, and this is hfkd's own definition."
    )
    rows = [
        (
            name,
            f"{found.losses.flatten()[found.losses.numel() // 2]:.4f}",
            f"{found.variance:.6g}",
            f"{found.area():.4f}",
        )
        for name, found in students.items()
    ]
    figure = landscape_lines(students) if flat else landscape_maps(students)
    table = (("student", "loss in the middle", "variance", f"Area@{LEVEL:g}"), rows)
    return Section("Loss landscape", text, figure, table)
