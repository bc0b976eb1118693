"""The style of hfkd's figures, and their conversion to bytes. Needs matplotlib only when a function is called."""

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:  # for annotations, before matplotlib is imported
    Axes = Figure = Any

P = ParamSpec("P")
R = TypeVar("R")

# Okabe and Ito's colours, distinct under all common forms of colour blindness; a role has the same colour everywhere
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
STUDENT, TEACHER = BLUE, ORANGE
LOW_ENERGY, HIGH_ENERGY = GREEN, PURPLE
LINES = (BLUE, ORANGE, GREEN, PURPLE, SKY)
INK, FAINT, GREY, GRID = "#222222", "#666666", "#9AA5B1", "#E4E4E4"

STYLE: dict[str, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",  # included in matplotlib, so that pages look the same everywhere
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "svg.fonttype": "path",
    "svg.hashsalt": "hfkd",  # makes the bytes of a figure reproducible
}


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` with hfkd's style, without changing the caller's matplotlib settings."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            import matplotlib.style
        except ImportError as error:
            raise ImportError(f"{function.__name__} draws with matplotlib: pip install 'hfkd[demo]'") from error
        with matplotlib.style.context(["default", STYLE]):
            return function(*args, **kwargs)

    return call


def looks(colors: Sequence[str], **kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The looks of any number of curves: each color with the first of `linestyle` or `marker`, then with the next."""
    ((name, values),) = kinds.items()
    return ({"color": color, name: value} for value in cycle(values) for color in colors)


def new_figure(width: float, height: float, panels: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of `width` x `height` inches, and its panels, row by row: `panels` side by side in each.

    No pyplot, so no display and no global list.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, panels, squeeze=False).flat)


def literal(text: str) -> str:
    """A name for a figure, in which two dollars begin no formula of matplotlib's, which it may not be able to read."""
    return text.replace("$", r"\$")


def say_empty(axes: Axes, text: str) -> None:
    """Write into an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=FAINT)
    axes.set(xticks=[], yticks=[])


@styled
def figure_bytes(figure: Figure) -> tuple[str, bytes]:
    """(MIME type, bytes): PNG if the figure has images, else SVG, which is then smaller and scalable."""
    buffer = io.BytesIO()
    if any(axes.images for axes in figure.axes):
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return "image/png", buffer.getvalue()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return "image/svg+xml", buffer.getvalue()


def as_array(values: Any) -> np.ndarray:
    """An array, a sequence or a tensor (also bfloat16, or with gradient) as a numpy array."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
        return values.numpy()
    return np.asarray(values)


def as_vector(values: Any, name: str) -> np.ndarray:
    """A finite, non-empty float array [n]; `name` is for the error message."""
    array = as_array(values).astype(np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}: pass one number per sample, [n] with n > 0")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has {(~np.isfinite(array)).sum()} non-finite values among {array.size}: drop them")
    return array
