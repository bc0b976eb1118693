"""Figures of detection: labelled boxes and detections of teacher and student on a few images.

H x W pixels, G boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hfkd.reports.html import Section
from hfkd.reports.masks import WIDTH, class_colours
from hfkd.reports.style import Axes, Figure, as_array, literal, new_figure, styled

SCORE = 0.3  # minimum score of drawn boxes
MOST = 12  # maximum number of drawn boxes per image


@dataclass(frozen=True)
class FoundBoxes:
    """boxes [G, 4] as (x1, y1, x2, y2) in pixels, their classes [G], and for detections their scores [G]."""

    boxes: Any
    labels: Any
    scores: Any = None


@dataclass(frozen=True)
class BoxExample:
    """One image, uint8 [H, W, 3], its labelled boxes, and the networks' detections; teacher: None if there is none."""

    name: str
    image: Any
    label: FoundBoxes
    student: FoundBoxes
    teacher: FoundBoxes | None = None


def box_sections(examples: Sequence[BoxExample], label_names: Sequence[str]) -> list[Section]:
    """A section with an explanation, and one for each example; without examples one that says so."""
    title = "Boxes"
    if not examples:
        return [Section(title, "Left out: there is no evaluation set to show images of.")]
    text = f"Shown are at most {MOST} detections per network and image, with a score of at least {SCORE:g}."
    if all(example.teacher is None for example in examples):
        text += " The run had no teacher."
    found = [Section(title, text)]
    for example in examples:
        counts = ", ".join(f"{name} {len(_drawn(boxes))}" for name, boxes in _panels(example))
        figure = box_example(example, label_names)
        found.append(Section(example.name, f"Boxes: {counts}.", figure, alt=f"Boxes side by side: {counts}"))
    return found


@styled
def box_example(example: BoxExample, label_names: Sequence[str]) -> Figure:
    """The image with labelled boxes and with those of each network, one below the other."""
    panels, image = _panels(example), as_array(example.image)
    height, width = image.shape[:2]
    figure, grid = new_figure(WIDTH, len(panels) * (WIDTH * height / width + 0.3), rows=len(panels))
    for axes, (name, boxes) in zip(grid, panels, strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(name)
        axes.axis("off")
        _draw(axes, boxes, label_names)
    return figure


def _panels(example: BoxExample) -> list[tuple[str, FoundBoxes]]:
    given = {"label": example.label, "teacher": example.teacher, "student": example.student}
    return [(name, boxes) for name, boxes in given.items() if boxes is not None]


def _drawn(found: FoundBoxes) -> list[int]:
    """Indices of the boxes to draw: all labelled ones, or the detections with the highest scores."""
    if found.scores is None:
        return list(range(len(found.boxes)))
    scores = as_array(found.scores)
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    return [k for k in order if scores[k] >= SCORE][:MOST]


def _draw(axes: Axes, found: FoundBoxes, label_names: Sequence[str]) -> None:
    from matplotlib.patches import Rectangle

    colours, boxes, labels = class_colours(len(label_names)), as_array(found.boxes), as_array(found.labels)
    for k in _drawn(found):
        x1, y1, x2, y2 = map(float, boxes[k])
        colour = colours[int(labels[k])]
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.5))
        score = "" if found.scores is None else f" {float(as_array(found.scores)[k]):.2f}"
        box = {"facecolor": colour, "edgecolor": "none", "pad": 1}
        axes.text(x1, y1, f"{literal(label_names[int(labels[k])])}{score}", fontsize=7, va="bottom", bbox=box)
