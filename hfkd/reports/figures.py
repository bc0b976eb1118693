"""Figures of a distillation run, from plain arrays (numpy or CPU tensors) to `matplotlib.figure.Figure`.

Shape letters: n samples, C classes, H x W pixels. No function touches pyplot, a display or the caller's settings.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from hfkd.losses.registry import OBJECTIVES
from hfkd.reports import style
from hfkd.reports.evaluations import of_the_run
from hfkd.reports.history import Entry, series
from hfkd.reports.style import Axes, Figure, as_array, as_vector, literal, new_figure, say_empty, styled
from hfkd.utils.numbers import with_deviation

CLASSES_SHOWN = 20
BINS = 60
ACCURACIES = (
    ("eval_accuracy", "top-1", style.STUDENT),
    ("eval_top5_accuracy", "top-5", style.SKY),
    ("eval_mean_iou", "mean IoU", style.STUDENT),
    ("eval_pixel_accuracy", "pixel accuracy", style.SKY),
    ("eval_ap", "AP", style.STUDENT),
    ("eval_ap50", "AP50", style.SKY),
)
PARTS = ("ce", "relations", "mixed_kd", "rest")  # of the loss, besides the terms and what is called a loss
PERCENT_ALREADY = ("eval_ap", "eval_ap50")  # even if all values are below 1


def percent_scale(accuracies: Iterable[float]) -> float:
    """Factor to percent: 100 for the fractions of `evaluate`'s metrics, 1 if a value above 1 shows percent already."""
    return 100.0 if max(accuracies, default=0.0) <= 1.0 else 1.0


@styled
def training_curves(log_history: Iterable[Entry]) -> Figure:
    """Losses (training: `loss` and its parts; evaluation: dashed), and evaluation scores.

    `log_history` is `TrainerState.log_history`; the `epochs` of a results.json do as well. Accuracies and IoU are
    fractions, or percent if one is above 1; AP is percent.
    """
    from matplotlib.ticker import MaxNLocator

    history = [entry for entry in log_history if of_the_run(entry)]
    figure, (left, right) = new_figure(8.4, 3.4, panels=2)
    keys = dict.fromkeys(key for entry in history for key in entry)
    losses = [key for key in keys if not key.startswith("eval_") and key != "train_loss" and _of_the_loss(key)]
    looks = style.looks(style.LINES, linestyle=("-", ":", "-."))
    for look, key in zip(looks, sorted(losses, key=lambda key: key != "loss"), strict=False):
        _curve(left, *series(history, key), label=f"training {key}", **look)
    _curve(left, *series(history, "eval_loss"), color=style.INK, linestyle="--", label="evaluation loss")
    for key, label, color in ACCURACIES:
        epochs, values = series(history, key)
        scale = 1.0 if key in PERCENT_ALREADY else percent_scale(values)
        _curve(right, epochs, [scale * value for value in values], color=color, label=label)
    left.set(title="loss", xlabel="epoch")
    right.set(title="evaluation scores (%)", xlabel="epoch")
    for axes, missing in ((left, "no loss was logged"), (right, "no evaluation was logged")):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend() if axes.lines else say_empty(axes, missing)
        if axes.lines:
            axes.set_xlim(left=0)  # one evaluation alone would have an axis of fractions around it
    return figure


def _of_the_loss(key: str) -> bool:
    """Whether it names the loss or a part of it; of several terms with one objective the later ones are numbered."""
    return key in PARTS or key.endswith("loss") or re.sub(r"_\d+$", "", key) in OBJECTIVES


def _curve(axes: Axes, epochs: list[float], values: list[float], **look: Any) -> None:
    if epochs:
        axes.plot(epochs, values, marker="o" if len(epochs) <= 12 else None, **look)


@styled
def energy_histogram(
    energies: Any, thresholds: tuple[float, float] | None = None, samples: str = "training samples"
) -> Figure:
    """Histogram of the energies [n] of `samples`, with the thresholds (low, high) for a different treatment.

    Energy KD (Kim et al.), Section 3: E = -T_E logsumexp(z / T_E); low energy = confident.
    """
    values = as_vector(energies, "energies")
    figure, (axes,) = new_figure(8.4, 3.6)
    counts, edges = np.histogram(values, bins=BINS)
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=style.GREY, linewidth=0)
    axes.set_xlabel("teacher energy  $E = -T_E\\,\\mathrm{logsumexp}(z / T_E)$\nlow energy = the teacher is confident")
    axes.set_ylabel(samples)
    axes.grid(axis="x", visible=False)
    if thresholds is not None:
        low, high = (float(threshold) for threshold in thresholds)
        if low > high:
            raise ValueError(f"thresholds {thresholds} are not in order: pass (low, high), low energy = confident")
        left, right = min(edges[0], low), max(edges[-1], high)
        axes.set_xlim(left, right)
        _region(axes, left, low, low, (values < low).mean(), "low", "right")
        _region(axes, high, right, high, (values > high).mean(), "high", "left")
    return figure


def _region(axes: Axes, start: float, end: float, threshold: float, share: float, name: str, alignment: str) -> None:
    """Shade the energies beyond a threshold, with a label above the panel."""
    color = style.LOW_ENERGY if name == "low" else style.HIGH_ENERGY
    axes.axvspan(start, end, color=color, alpha=0.15, linewidth=0)
    axes.axvline(threshold, color=color, linewidth=1.6)
    sign = "<" if name == "low" else ">"
    axes.annotate(
        f"{name} energy:  $E {sign} {threshold:.2f}$\n{100 * share:.1f} % of the samples",
        (threshold, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if alignment == "right" else 6, 5),
        textcoords="offset points",
        ha=alignment,
        va="bottom",
        fontsize=9,
    )


@styled
def image_grid(images: Any, captions: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """Images, uint8 [n, H, W, C] or [n, C, H, W] with C = 1 or 3, in rows of `columns`, without interpolation."""
    pixels = _channels_last(as_array(images))
    count, height, width, channels = pixels.shape
    if captions is not None and len(captions) != count:
        raise ValueError(f"{len(captions)} captions for {count} images: pass one caption per image, or None")
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    lines = 0 if captions is None else max(caption.count("\n") for caption in captions) + 1
    gap, foot = 0.08, 0.16 * lines  # in image widths
    tall = height / width + foot
    figure, (axes,) = new_figure(columns * 1.05, rows * tall * 1.05)
    for index in range(count):
        left, top = index % columns * 1.0, index // columns * tall
        box = (left, left + 1 - gap, top + height / width - gap, top)
        picture = pixels[index] if channels == 3 else pixels[index, ..., 0]
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=box, interpolation="nearest")
        if captions is not None:
            axes.text(left + (1 - gap) / 2, box[2] + 0.03, literal(captions[index]), ha="center", va="top", fontsize=8)
    axes.set(xlim=(0, columns - gap), ylim=(rows * tall, 0), aspect="equal")
    axes.axis("off")
    return figure


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8:
        raise ValueError(f"images are {pixels.dtype}: pass uint8, undoing the normalisation ((x * std + mean) * 255)")
    if pixels.ndim == 4 and len(pixels) and pixels.shape[-1] in (1, 3):
        return pixels
    if pixels.ndim == 4 and len(pixels) and pixels.shape[1] in (1, 3):
        return pixels.transpose(0, 2, 3, 1)
    raise ValueError(f"images have shape {pixels.shape}: pass [n, H, W, C] or [n, C, H, W] with n > 0 and C = 1 or 3")


@styled
def mean_prediction(groups: Mapping[str, Any]) -> Figure:
    """Mean of the SORTED class probabilities [n, C] of each group, the 20 largest, on a log axis.

    After Figures 2 and 3 of Energy KD: confident (low energy) samples carry little information on the other classes,
    uncertain ones much, so that the former need a higher temperature. Sorting per sample, which makes samples of
    different classes comparable, is not in the paper. Groups named low... and high... have the colours of the energy
    histogram.
    """
    if not groups:
        raise ValueError("groups is empty: pass {name: probabilities [n, C]}")
    figure, (axes,) = new_figure(8.4, 3.4)
    names = {"low": style.LOW_ENERGY, "high": style.HIGH_ENERGY}
    for spare, (name, probabilities) in zip(cycle(style.LINES), groups.items(), strict=False):
        table = as_array(probabilities).astype(np.float64)  # [n, C]
        if table.ndim != 2 or table.size == 0:
            raise ValueError(f"group {name!r} has shape {table.shape}: pass probabilities [n, C] with n > 0")
        mean = np.sort(table, axis=-1)[:, ::-1].mean(axis=0)[:CLASSES_SHOWN]  # [C]
        color = names.get(name.split()[0] if name else "", spare)
        mean[mean <= 0] = np.nan  # underflow cannot be shown on a log axis
        label = f"{name} (mean of {len(table):,})"
        axes.plot(np.arange(1, len(mean) + 1), mean, marker="o", color=color, label=label)
    axes.set_yscale("log")
    axes.set_xticks(range(1, 1 + max(np.size(line.get_xdata()) for line in axes.lines)))
    axes.set(xlabel="class, by rank in each sample's prediction", ylabel="mean probability")
    axes.legend()
    return figure


@styled
def accuracy_by_entropy(entropy: Any, student_correct: Any, teacher_correct: Any, segments: int = 10) -> Figure:
    """Accuracy of student and teacher in equally large segments, from the teacher's most to least certain samples.

    `entropy`, `student_correct`, `teacher_correct`: [n], the last two 0/1 or bool. With n < `segments`, n segments.
    """
    certainty = as_vector(entropy, "entropy")
    correct = {
        "student": as_vector(student_correct, "student_correct"),
        "teacher": as_vector(teacher_correct, "teacher_correct"),
    }
    for name, values in correct.items():
        if len(values) != len(certainty):
            raise ValueError(
                f"{name}_correct has {len(values)} values, entropy {len(certainty)}: pass the same samples"
            )
    parts = np.array_split(np.argsort(certainty, kind="stable"), min(segments, len(certainty)))
    figure, (axes,) = new_figure(8.4, 3.6)
    places = np.arange(len(parts))
    for offset, (name, values), color in zip((-0.2, 0.2), correct.items(), (style.STUDENT, style.TEACHER), strict=True):
        heights = [100 * values[part].mean() for part in parts]
        axes.bar(places + offset, heights, 0.38, color=color, label=f"{name} ({100 * values.mean():.1f} % overall)")
    axes.set_xticks(places, [f"{certainty[part].mean():.2f}" for part in parts])
    axes.set(xlabel=f"mean teacher entropy (nats) of each 1/{len(parts)} of the samples;  left = teacher is certain")
    axes.set(ylabel="accuracy (%)", ylim=(0, 100))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)
    return figure


@styled
def comparison_bars(
    rows: Sequence[tuple[str, float, float | None, Sequence[float]]], label: str = "accuracy (%)"
) -> Figure:
    """Comparison of methods: each seed as a dot, mean and standard deviation as a diamond with a bar, first row on top.

    `rows`: (name, mean, sd or None, points), in the units given. Dots instead of bars from zero, since differences
    between methods are small compared with the accuracy.
    """
    if not rows:
        raise ValueError("rows is empty: pass (name, mean, sd or None, points) per method")
    figure, (axes,) = new_figure(8.4, 0.9 + 0.38 * len(rows))
    for place, (_, mean, deviation, points) in enumerate(rows):
        seeds = as_array(points).astype(np.float64).reshape(-1)
        known = deviation is not None and np.isfinite(deviation)
        axes.errorbar(
            mean, place, xerr=deviation if known else None, fmt="D", color=style.BLUE, markersize=6, elinewidth=2
        )
        axes.plot(
            seeds,
            np.full(len(seeds), place + 0.2),
            "o",
            color=style.ORANGE,
            markersize=5,
            alpha=0.75,
            markeredgewidth=0,
        )
        number = with_deviation(mean, deviation if known else None)
        axes.annotate(
            f"{number}  (n={len(seeds)})", (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9
        )
    axes.set_yticks(range(len(rows)), [literal(row[0]) for row in rows])
    axes.set(xlabel=f"{label};  diamond and bar: mean ± sd, dots: seeds", ylim=(len(rows) - 0.5, -0.5))
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    return figure
