"""Figures of segmentation: labels, predictions of student and teacher, and the teacher's confidence on a few images.

H x W pixels, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hfkd.reports.html import Section
from hfkd.reports.style import Figure, as_array, literal, new_figure, styled

WIDTH = 5.2  # inches: narrow, so that titles are readable on phones
UNLABELLED_COLOUR = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class MaskExample:
    """One image, uint8 [H, W, 3]; maps of classes [H, W], negative for no label; maps of numbers [H, W].

    `teacher`, `energy` and `entropy` are those of the teacher, None if the run has none. With several students
    `student` is None, `students` has the predicted classes of each by name, and `entropies` their entropies.
    """

    name: str
    image: Any
    label: Any
    student: Any
    teacher: Any = None
    energy: Any = None
    entropy: Any = None
    students: Mapping[str, Any] = field(default_factory=dict)
    entropies: Mapping[str, Any] = field(default_factory=dict)


def mask_sections(examples: Sequence[MaskExample], label_names: Sequence[str]) -> list[Section]:
    """A section with the colours of classes, and one for each example; without examples one that says so."""
    title = "Masks"
    if not examples:
        return [Section(title, "Left out: there is no evaluation set to show images of.")]
    text = "Pixels without a label are white."
    if any(example.energy is not None for example in examples):
        ranges = [_range_text(name, examples) for name in ("energy", "entropy")]
        text += (
            " Energy (T = 4) and entropy (T' = 3) are the teacher's, pixel by pixel: dark where it is confident. "
            f"In all images energies run from {ranges[0]}, entropies from {ranges[1]} nats."
        )
        if any(example.entropies for example in examples):
            text += " Entropies of the students (entropy: NAME) are drawn on the same range."
    else:
        text += " The run had no teacher."
    named = ", ".join(label_names)
    found = [Section(title, text, class_key(label_names), alt=f"The colour of each class: {named}")]
    for example in examples:
        shown = ", ".join(name for name, _, _ in _panels(example))
        figure = mask_example(example, len(label_names), examples)
        found.append(Section(example.name, "", figure, alt=f"Side by side: {shown}"))
    return found


def class_colours(classes: int) -> np.ndarray:
    """A colour for each class [C, 3]; from the 21st on they are repeated in paler shades."""
    from matplotlib import colormaps

    # Strong colours before pale ones.
    base = colormaps["tab20"](np.arange(20))[:, :3][[*range(0, 20, 2), *range(1, 20, 2)]]
    return np.stack([base[k % 20] * 0.6 ** (k // 20) + (1 - 0.6 ** (k // 20)) for k in range(classes)])


@styled
def class_key(label_names: Sequence[str]) -> Figure:
    """The colour of each class."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = 3
    figure = Figure(figsize=(WIDTH, 0.15 + 0.24 * -(-len(label_names) // columns)))
    colours = class_colours(len(label_names))
    patches = [Patch(color=colour, label=literal(name)) for colour, name in zip(colours, label_names, strict=True)]
    figure.legend(handles=patches, loc="center", ncols=columns, borderpad=0, handlelength=1.2)
    return figure


@styled
def mask_example(example: MaskExample, classes: int, among: Sequence[MaskExample] | None = None) -> Figure:
    """Image and label, teacher and student, energy and entropy, two per row; colour ranges are those of `among`."""
    panels, colours = _panels(example), class_colours(classes)
    rows, (height, width) = -(-len(panels) // 2), as_array(example.image).shape[:2]
    figure, grid = new_figure(WIDTH, rows * (WIDTH / 2 * height / width + 0.3), panels=2, rows=rows)
    for axes, (name, kind, values) in zip(grid, panels, strict=False):
        array = as_array(values)
        if kind in ("energy", "entropy"):
            low, high = _range(kind, among or [example])
            axes.imshow(array, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        else:
            axes.imshow(array if kind == "image" else _coloured(array, colours), interpolation="nearest")
        axes.set_title(name)
    for axes in grid:
        axes.axis("off")
    return figure


def _panels(example: MaskExample) -> list[tuple[str, str, Any]]:
    """Title, kind and values of each panel."""
    masks, numbers = ("image", "label", "teacher", "student"), ("energy", "entropy")
    found: list[tuple[str, str, Any]] = [(name, name, getattr(example, name)) for name in masks]
    found += [(name, "student", mask) for name, mask in example.students.items()]
    found += [(name, name, getattr(example, name)) for name in numbers]
    found += [(f"entropy: {name}", "entropy", values) for name, values in example.entropies.items()]
    return [panel for panel in found if panel[-1] is not None]


def _coloured(mask: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """[H, W] -> [H, W, 3]"""
    shown = colours[mask.clip(0, len(colours) - 1)]
    shown[(mask < 0) | (mask >= len(colours))] = UNLABELLED_COLOUR
    return shown


def _range(name: str, examples: Sequence[MaskExample]) -> tuple[float, float]:
    found = [getattr(example, name) for example in examples]
    found += [value for example in examples if name == "entropy" for value in example.entropies.values()]
    values = [as_array(value) for value in found if value is not None]
    return float(min(v.min() for v in values)), float(max(v.max() for v in values))


def _range_text(name: str, examples: Sequence[MaskExample]) -> str:
    low, high = _range(name, examples)
    return f"{low:.2f} to {high:.2f}"
