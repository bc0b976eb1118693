"""Sections on a teacher's energies: histogram, images with extreme energies, and mean predictions.

m images of a group, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfkd.reports.figures import energy_histogram, image_grid, mean_prediction
from hfkd.reports.html import Section
from hfkd.reports.style import as_array

SHADED = "Samples in the shaded regions are treated differently from those in the middle."


@dataclass(frozen=True)
class EnergyGroup:
    """Samples with the lowest or highest energies: images (uint8, see `image_grid`), probabilities [m, C] of these and
    more, and captions of classes.

    None for what is not available.
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
    """Sections on energies [n], images with the lowest and highest, and mean predictions of both groups.

    `samples` is the name of the samples, `shaded` explains the regions outside the `thresholds` (low, high).
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
        return Section(title, "Left out: the run did not scan the training set, so there are no energies.")
    text = f"The energy of each of the {samples} under the teacher; low energy means that the teacher is confident."
    if thresholds is not None:
        text += f" {shaded}"
    return Section(title, text, energy_histogram(energies, thresholds, samples))


def _images(title: str, group: EnergyGroup) -> Section:
    images, probabilities, classes = group.images, group.probabilities, group.classes
    if images is None or len(images) == 0:
        return Section(
            title,
            "Left out: there are no images, as the run did not scan the training set or its items are not images.",
        )
    if probabilities is None or len(probabilities) < len(images):
        return Section(title, "", image_grid(images))
    top = as_array(probabilities)[: len(images)].max(axis=-1)
    text = "Below each image: the teacher's largest class probability."
    captions = [f"{value:.3f}" for value in top]
    if classes is not None:
        text = (
            "Below each image: its class, the teacher's prediction if it differs, and the teacher's largest "
            "probability."
        )
        captions = [f"{name}\n{value}" for name, value in zip(classes, captions, strict=False)]
    return Section(title, text, image_grid(images, captions=captions))


def _predictions(groups: Mapping[str, Any]) -> Section:
    title = "Mean prediction"
    if not groups:
        return Section(
            title, "Left out: the run did not scan the training set, so there are no groups of low and high energy."
        )
    text = (
        "The teacher's class probabilities, sorted within each sample, then averaged. A steep curve says little about "
        "the other classes, so that a higher temperature brings out more; a flat curve is uncertain already."
    )
    return Section(title, text, mean_prediction(groups))


def class_captions(labels: Any, probabilities: Any, names: Sequence[str] | None = None) -> list[str]:
    """Captions with each image's class, and after an arrow the teacher's prediction if it differs: names, or ids.

    A label of -100 is shown as a question mark. labels [m], probabilities [m or more, C].
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
    """A class name, shortened to fit below an image."""
    return name if len(name) <= 10 else name[:9] + "…"
