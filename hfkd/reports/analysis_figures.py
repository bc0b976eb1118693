"""Figures of an analysis: a teacher and its students side by side. See `hfkd.reports.figures`.

C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hfkd.reports import style
from hfkd.reports.style import Axes, Figure, as_array, new_figure, styled

Segments = Sequence[Mapping[str, float]]
PER_ROW = 3  # number of panels per row
STUDENT_LINES = (style.BLUE, style.PURPLE, style.GREEN, style.SKY)  # the fifth colour is the teacher's


def student_looks() -> Iterator[dict[str, Any]]:
    """The looks of the students' curves, in their order."""
    return style.looks(STUDENT_LINES, marker=("o", "s", "^", "D"))


@styled
def segment_accuracy(students: Mapping[str, Segments], one_teacher: bool) -> Figure:
    """Accuracy of each student, and its gap to the teacher, in segments of increasing entropy.

    Each segment has `teacher_accuracy`, `student_accuracy` and `gap`, as fractions. one_teacher: the segments contain
    the same images for all students, so that the teacher has one line; else it has a dashed line in each student's
    colour.
    """
    figure, (left, right) = new_figure(8.4, 3.6, panels=2)
    for number, ((name, segments), own) in enumerate(zip(students.items(), student_looks(), strict=False)):
        places = np.arange(1, len(segments) + 1)
        values = {key: [100 * one[key] for one in segments] for key in ("teacher_accuracy", "student_accuracy", "gap")}
        if not (one_teacher and number):
            label = "teacher" if one_teacher else f"teacher, segments of {name}"
            look: dict[str, Any] = {"color": style.TEACHER, "marker": "o"} if one_teacher else own | {"linestyle": "--"}
            left.plot(places, values["teacher_accuracy"], label=label, **look)
        left.plot(places, values["student_accuracy"], label=name, **own)
        right.plot(places, values["gap"], label=name, **own)
        left.set_xticks(places)
        right.set_xticks(places)
    right.axhline(0, color=style.FAINT, linewidth=1)
    left.set(title="accuracy (%)", ylim=(0, 103))
    right.set(title="teacher's accuracy less the student's (points)")
    for axes in (left, right):
        axes.set_xlabel("segment;  left = certain, right = uncertain")
    handles, labels = left.get_legend_handles_labels()
    columns = min(3, len(labels) if one_teacher else len(students))  # each student's entry is below that of its teacher
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    return figure


@styled
def heatmaps(differences: Mapping[str, Any]) -> Figure:
    """Matrices [C, C] of absolute differences side by side, with a common scale from 0; NaN entries are white."""
    arrays = {name: as_array(matrix).astype(float) for name, matrix in differences.items()}
    highest = max((np.nanmax(array) for array in arrays.values() if not np.isnan(array).all()), default=1.0) or 1.0
    figure, grid = panels(len(arrays), 2.9)
    shown: Any = None
    for axes, (name, array) in zip(grid, arrays.items(), strict=False):
        shown = axes.imshow(array, cmap="magma_r", vmin=0, vmax=highest, interpolation="nearest")
        axes.set(title=name, xlabel="class", ylabel="class")
        axes.grid(visible=False)
    figure.colorbar(shown, ax=grid[: len(arrays)], label="|difference|", shrink=0.8)
    return figure


def panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, three per row."""
    columns = min(PER_ROW, count)
    rows = -(-count // columns)
    figure, grid = new_figure(8.4 * max(columns, 2) / PER_ROW, height * rows, columns, rows)
    for axes in grid[count:]:
        axes.axis("off")
    return figure, grid


@styled
def divergence_bars(students: Mapping[str, Mapping[str, float]], items: str) -> Figure:
    """The mean divergence of each student, over all `items` and over those with lowest and highest teacher entropy."""
    kinds = {"kl_lowest_entropy": style.LOW_ENERGY, "kl": style.GREY, "kl_highest_entropy": style.HIGH_ENERGY}
    names = {"kl_lowest_entropy": "lowest 10 %", "kl": f"all {items}", "kl_highest_entropy": "highest 10 %"}
    figure, (axes,) = new_figure(8.4, 1.2 + 0.75 * len(students))
    for offset, (kind, color) in zip((-0.26, 0, 0.26), kinds.items(), strict=True):
        values = [one[kind] for one in students.values()]
        bars = axes.barh(np.arange(len(students)) + offset, values, 0.24, color=color, label=names[kind])
        axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    axes.set_yticks(range(len(students)), list(students))
    axes.set(xlabel="mean KL(teacher || student), nats", ylim=(len(students) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    figure.legend(loc="outside upper right", ncols=3)
    return figure
