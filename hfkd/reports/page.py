"""The HTML page of a distillation run: settings, training curves, and the teacher's energies and entropies."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from hfkd.reports.boxes import BoxExample, box_sections
from hfkd.reports.energy import EnergyGroup, energy_sections
from hfkd.reports.environment import environment
from hfkd.reports.figures import accuracy_by_entropy, percent_scale, training_curves
from hfkd.reports.history import (
    Choice,
    Entry,
    best_row,
    epoch_rows,
    is_evaluation,
    is_number,
    last_row,
    series,
    teacher_scores,
)
from hfkd.reports.html import Section, write_page
from hfkd.reports.masks import MaskExample, mask_sections
from hfkd.utils.json_file import jsonable

METRIC, MASK_METRIC = "eval_accuracy", "eval_mean_iou"
SETTINGS = ("teacher", "student", "objective", "temperature", "weighting")
UNKNOWN = "not recorded"


def distillation_page(
    path: str | os.PathLike[str],
    *,
    config: Mapping[str, Any],
    log_history: Sequence[Entry],
    results: Mapping[str, Any] | None = None,
    **data: Any,
) -> None:
    """`run_page` with the sections of `distillation_sections(**data)`."""
    sections = distillation_sections(log_history, **data)
    run_page(path, sections, config=config, log_history=log_history, results=results)


def run_page(
    path: str | os.PathLike[str],
    sections: Sequence[Section],
    *,
    config: Mapping[str, Any],
    log_history: Sequence[Entry],
    results: Mapping[str, Any] | None = None,
) -> None:
    """Write a page of these sections, below a summary of the run and above its settings.

    `config`: any JSON-able settings; `teacher`, `student`, `objective`, `temperature`, `weighting` go to the summary.
    `results`: the content of results.json, which knows the time of all sessions and the machine; without it, the last
    session's time and this machine are shown.
    """
    settings = [(name, _short(value)) for name, value in config.items()]
    shown = [*sections, Section("Settings", "", table=(("name", "value"), settings))]
    title = f"Distillation: {_short(config.get('teacher', 'teacher'))} → {_short(config.get('student', 'student'))}"
    write_page(path, title, shown, _summary(config, epoch_rows(log_history), log_history, results or {}))


def distillation_sections(
    log_history: Sequence[Entry],
    *,
    energies: Any = None,
    thresholds: tuple[float, float] | None = None,
    lowest_images: Any = None,
    highest_images: Any = None,
    lowest_probabilities: Any = None,
    highest_probabilities: Any = None,
    lowest_classes: Sequence[str] | None = None,
    highest_classes: Sequence[str] | None = None,
    entropy: Any = None,
    entropy_temperature: float = 1.0,
    student_correct: Any = None,
    teacher_correct: Any = None,
) -> list[Section]:
    """The sections of a run's page. A section whose data is None is replaced by a line that says why.

    From a scan of the training set by the teacher: `energies` [n], `thresholds` (low, high), the images of lowest and
    highest energy (uint8, see `image_grid`), and class probabilities [m, C] of the two groups, whose first rows belong
    to the images; `lowest_classes` and `highest_classes` are captions with each image's class, and the teacher's. From
    an evaluation: `entropy` (of the teacher, at `entropy_temperature`), `student_correct` and `teacher_correct`, [n]
    each.
    """
    lowest = EnergyGroup(lowest_images, lowest_probabilities, lowest_classes)
    highest = EnergyGroup(highest_images, highest_probabilities, highest_classes)
    return [
        _training(log_history),
        *energy_sections(energies, lowest, highest, thresholds),
        _segments(entropy, student_correct, teacher_correct, entropy_temperature),
    ]


def segmentation_sections(
    log_history: Sequence[Entry], *, label_names: Sequence[str], examples: Sequence[MaskExample] = ()
) -> list[Section]:
    """The sections of a segmentation run: curves, IoU of each class in the last evaluation, and `examples`."""
    return [_training(log_history), _classes(log_history, label_names), *mask_sections(examples, label_names)]


def detection_sections(
    log_history: Sequence[Entry], *, label_names: Sequence[str], examples: Sequence[BoxExample] = ()
) -> list[Section]:
    """The sections of a detection run: curves, and the boxes of `examples`."""
    return [_training(log_history), *box_sections(examples, label_names)]


def _training(log_history: Sequence[Entry]) -> Section:
    text = "Losses logged during training, and scores on the evaluation set."
    return Section("Training", text, training_curves(log_history))


def _classes(log_history: Sequence[Entry], label_names: Sequence[str]) -> Section:
    title, row = "IoU of each class", last_row(epoch_rows(log_history), MASK_METRIC)
    if row is None:
        return Section(title, "Left out: no mean IoU was logged.")
    found = [(name, row[f"eval_iou_{name}"]) for name in label_names if f"eval_iou_{name}" in row]
    # NaN, of a class that does not occur, is None in the history of a resumed run.
    table = [(name, f"{100 * value:.2f}" if is_number(value) else "-") for name, value in found]
    return Section(title, "Of the last evaluation, in percent.", table=(("class", "IoU"), table))


def _summary(
    config: Mapping[str, Any], rows: Sequence[Entry], log_history: Sequence[Entry], results: Mapping[str, Any]
) -> dict[str, str]:
    runtime = next((entry["train_runtime"] for entry in reversed(log_history) if "train_runtime" in entry), None)
    seconds = results.get("wall_time_seconds", runtime)
    epoch = results.get("train_epochs", max((entry.get("epoch") or 0.0 for entry in log_history), default=None))
    by_default = MASK_METRIC if any(MASK_METRIC in row for row in rows) else METRIC
    choice = Choice(**results["best_by"]) if "best_by" in results else Choice.by_name(by_default)
    name = choice.metric.removeprefix("eval_")
    best = best_row(rows, choice)
    also = best is not None and choice.metric != METRIC and METRIC in best
    return {
        **{name: _short(config[name]) if name in config else UNKNOWN for name in SETTINGS},
        **{name.replace("_", " "): f"{100 * value:.2f} %" for name, value in teacher_scores(log_history).items()},
        f"best {name}": _score(best, choice.metric, rows),
        **({"accuracy of that epoch": _score(best, METRIC, rows)} if also else {}),
        f"last {name}": _score(last_row(rows, choice.metric), choice.metric, rows),
        "epochs": UNKNOWN if epoch is None else f"{epoch:g}",
        "seconds": UNKNOWN if seconds is None else f"{seconds:,.1f}",
        "machine": _machine(results.get("environment") or environment()),
    }


def _score(row: Entry | None, metric: str, rows: Sequence[Entry]) -> str:
    if row is None:
        return "not logged" if any(map(is_evaluation, rows)) else "no evaluation was logged"
    if not metric.endswith(("accuracy", "iou")):
        return f"{row[metric]:.6g} (epoch {row.get('epoch', 0):g})"
    # as in the figure, the whole series determines whether values are fractions
    shown = row[metric] * percent_scale(series(rows, metric)[1])
    return f"{shown:.2f} % (epoch {row.get('epoch', 0):g})"


def _machine(facts: Mapping[str, Any]) -> str:
    devices = [str(device) for device in facts.get("devices", [])]
    names = [f"{devices.count(name)} × {name}" if devices.count(name) > 1 else name for name in dict.fromkeys(devices)]
    torch_version = facts.get("versions", {}).get("torch", "?")
    return f"{', '.join(names) or UNKNOWN}; {facts.get('cpu_count', '?')} CPU cores; torch {torch_version}"


def _segments(entropy: Any, student_correct: Any, teacher_correct: Any, temperature: float) -> Section:
    title = "Accuracy by teacher entropy"
    given = {"entropy": entropy, "student_correct": student_correct, "teacher_correct": teacher_correct}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        return Section(title, f"Left out: no per-sample evaluation was given (missing: {', '.join(missing)}).")
    text = (
        "Evaluation samples in equally large groups, from the most to the least certain ones for the teacher, "
        f"by the entropy of its softmax at temperature {temperature:g}."
    )
    return Section(title, text, accuracy_by_entropy(entropy, student_correct, teacher_correct))


def _short(value: Any) -> str:
    plain = jsonable(value, "config")
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
