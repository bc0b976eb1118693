"""What a teacher's energies tell: their histogram, the images at both ends, and how it predicts there.

m images of a group, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfkd.reports.figures import energy_histogram, image_grid, mean_prediction
from hfkd.reports.html import Section
from hfkd.reports.style import as_array

SHADED = "Samples in the shaded regions are treated differently from those in the middle."


@dataclass(frozen=True)
class EnergyGroup:
    """Samples at one end: images (uint8, see `image_grid`), probabilities [m, C] of these and more, and their classes.

    None for what is not known.
    """

    images: Any = None
    probabilities: Any = None
    classes: Sequence[str] | None = None


def energy_sections(
    energies: Any,
    lowest: EnergyGroup,
    highest: EnergyGroup,
    thresholds: tuple[float, float] | None = None,
    samples: str = "training samples",
    shaded: str = SHADED,
) -> list[Section]:
    """Energies [n], the images of lowest and of highest, and the mean prediction of the two groups.

    `samples` says what has these energies, `shaded` what the regions outside the `thresholds` (low, high) are.
    """
    groups = {"low energy": lowest.probabilities, "high energy": highest.probabilities}
    return [
        _energies(energies, thresholds, samples, shaded),
        _images("Most confident teacher: images of lowest energy", lowest),
        _images("Least confident teacher: images of highest energy", highest),
        _predictions({name: value for name, value in groups.items() if value is not None}),
    ]


def _energies(energies: Any, thresholds: tuple[float, float] | None, samples: str, shaded: str) -> Section:
    title = "Teacher energies"
    if energies is None:
        return Section(title, "Left out: the run used no scan of the training set, so there are no energies.")
    text = f"The energy of each of the {samples} under the teacher; low energy means that the teacher is confident."
    if thresholds is not None:
        text += f" {shaded}"
    return Section(title, text, energy_histogram(energies, thresholds, samples))


def _images(title: str, group: EnergyGroup) -> Section:
    images, probabilities, classes = group.images, group.probabilities, group.classes
    if images is None or len(images) == 0:
        return Section(title, "Left out: no images were kept, as the run used no scan or its items are not images.")
    if probabilities is None or len(probabilities) < len(images):
        return Section(title, "", image_grid(images))
    top = as_array(probabilities)[: len(images)].max(axis=-1)
    text = "Below each image: the teacher's largest class probability."
    captions = [f"{value:.3f}" for value in top]
    if classes is not None:
        text = "Below each image: its class, what the teacher takes it for where that is another, and how surely."
        captions = [f"{name}\n{value}" for name, value in zip(classes, captions, strict=False)]
    return Section(title, text, image_grid(images, captions=captions))


def _predictions(groups: Mapping[str, Any]) -> Section:
    title = "Mean prediction"
    if not groups:
        return Section(title, "Left out: the run used no scan, so it has no groups of low and high energy.")
    text = (
        "The teacher's class probabilities, sorted within each sample, then averaged. A steep curve says little about "
        "the other classes, so that a higher temperature brings out more; a flat curve is uncertain already."
    )
    return Section(title, text, mean_prediction(groups))


def class_captions(labels: Any, probabilities: Any, names: Sequence[str] | None = None) -> list[str]:
    """Each image's class, and after an arrow the teacher's where that is another: names, or ids where there are none.

    An image of label -100 has a question mark in its place. labels [m], probabilities [m or more, C].
    """
    table = as_array(probabilities)
    names = names or [str(number) for number in range(table.shape[-1])]
    return [
        _short(names[label])
        if label == its
        else f"{_short(names[label]) if label >= 0 else '?'} →\n{_short(names[its])}"
        for label, its in zip(as_array(labels).tolist(), table.argmax(-1).tolist(), strict=False)
    ]


def _short(name: str) -> str:
    """So much of a class's name as fits below an image."""
    return name if len(name) <= 10 else name[:9] + "…"
