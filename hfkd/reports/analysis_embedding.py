"""A section of the analysis page: t-SNE of each network's penultimate features, with hard images marked.

m images that are shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hfkd.reports import style
from hfkd.reports.analysis_figures import panels
from hfkd.reports.html import Section
from hfkd.reports.masks import class_colours
from hfkd.reports.style import Figure, as_array, styled

DISTINCT = 20  # number of distinguishable colours


@dataclass(frozen=True)
class Plane:
    """Points [m, 2] and classes [m] of the images; masks [m] of those with high entropy and with high weight.

    weight: None for the teacher, as weights depend on the student. The indices are Calinski-Harabasz indices.
    """

    points: Any
    labels: Any
    entropy: Any
    weight: Any
    index_of_features: float
    index_of_points: float


@styled
def planes_figure(planes: Mapping[str, Plane]) -> Figure:
    """The networks side by side, coloured by class; with more than 20 classes on a continuous scale."""
    figure, grid = panels(len(planes), 3.0)
    for axes, (name, plane) in zip(grid, planes.items(), strict=False):
        points, labels = as_array(plane.points), as_array(plane.labels)
        axes.scatter(points[:, 0], points[:, 1], s=7, c=_colours(labels), linewidths=0)
        hard = points[as_array(plane.entropy)]
        ring: Any = {"s": 26, "facecolors": "none", "edgecolors": style.ORANGE, "linewidths": 0.8}
        axes.scatter(hard[:, 0], hard[:, 1], label="highest tenth of the teacher's entropy", **ring)
        if plane.weight is not None:
            heavy = points[as_array(plane.weight)]
            cross: Any = {"s": 16, "c": style.INK, "marker": "x", "linewidths": 0.8}
            axes.scatter(heavy[:, 0], heavy[:, 1], label="highest tenth of EA-KD's weight", **cross)
        axes.set(title=name, xticks=[], yticks=[])
    handles, marks = grid[len(planes) - 1].get_legend_handles_labels()
    figure.legend(handles, marks, loc="outside lower center", ncols=2)
    return figure


def _colours(labels: np.ndarray) -> np.ndarray:
    """[m] -> [m, 3 or 4]"""
    from matplotlib import colormaps

    last = max(int(labels.max()), 1)
    return class_colours(last + 1)[labels] if last < DISTINCT else colormaps["turbo"](labels / last)


def embedding_section(planes: Mapping[str, Plane], images: int) -> Section:
    text = (
        f"t-SNE of what the last linear layer reads, of {images:,} images; colours are classes. Marked are the "
        "images of high teacher entropy, and of high weight w = H_T (1 + H_S / log C) / 2 beside each student."
        "\n\nThe Calinski-Harabasz index is high where classes are dense and far apart: of all images' features, and "
        "of the points that are drawn."
    )
    rows = [(name, f"{one.index_of_features:.2f}", f"{one.index_of_points:.2f}") for name, one in planes.items()]
    header = ("Calinski-Harabasz index", "of the features", "of the points")
    return Section("Penultimate features", text, planes_figure(planes), (header, rows))
