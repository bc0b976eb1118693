"""The page of an analysis of a teacher and its students, with the definition of each number."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from hfkd.reports.analysis_figures import divergence_bars, heatmaps, segment_accuracy
from hfkd.reports.html import Section, write_page

Numbers = Mapping[str, Any]


def analysis_page(path: str | os.PathLike[str], numbers: Numbers, sections: Sequence[Section]) -> None:
    """Write the page: a summary, a table of the students, and `sections`."""
    teacher, students = numbers["teacher"], numbers["students"]
    summary = {
        "teacher": f"{teacher['name']} ({percent(teacher['accuracy'])} %)",
        "students": ", ".join(students),
        "images": f"{numbers['images']:,} of the {numbers['split']} split of {numbers['dataset']}",
        "classes": numbers["classes"],
    }
    text = (
        "Accuracies in percent, gaps in percentage points. Agreement: share of images for which student and "
        "teacher predict the same class. Entropy: that of softmax(z / 3), in nats, mean over the images."
    )
    scores = [("accuracy", "accuracy"), ("gap", "gap"), ("agreement", "agreement")]
    table = networks_table("Accuracy", text, teacher, students, scores)
    write_page(path, f"Analysis: {teacher['name']} and its students", [table, *sections], summary)


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def networks_table(
    title: str, text: str, teacher: Numbers, students: Mapping[str, Numbers], scores: Sequence[tuple[str, str]]
) -> Section:
    """A table of the networks with their `scores`, pairs of a heading and a key of the numbers, and entropies."""
    rows = [
        (name, *(percent(one[key]) if key in one else "" for _, key in scores), f"{one['entropy']:.3f}")
        for name, one in [(f"{teacher['name']} (teacher)", teacher), *students.items()]
    ]
    return Section(title, text, table=(("network", *(heading for heading, _ in scores), "entropy"), rows))


def student_sections(
    students: Mapping[str, Numbers], differences: Mapping[str, Any], temperature: float
) -> list[Section]:
    """Accuracy by segments of entropy, divergences, and correlations, from `hfkd.evaluation.analysis.compare`."""
    return [
        by_teacher("Accuracy", students, "images"),
        _by_student(students),
        divergence(students, "images", temperature),
        _correlations(students, differences),
    ]


def by_teacher(score: str, students: Mapping[str, Numbers], items: str) -> Section:
    segments = {name: one["by_teacher_entropy"] for name, one in students.items()}
    text = (
        f"The {items} in equally large segments, from lowest to highest teacher entropy: they show where the "
        "student is worse than its teacher."
    )
    title = f"{score} by the teacher's entropy"
    return Section(title, text, segment_accuracy(segments, True), _gap_table(segments))


def _by_student(students: Mapping[str, Numbers]) -> Section:
    segments = {name: one["by_student_entropy"] for name, one in students.items()}
    text = (
        "The same by the entropy of each student: the segments, and thus the teacher's accuracy in them, differ "
        "between students."
    )
    return Section("Accuracy by the student's entropy", text, segment_accuracy(segments, False), _gap_table(segments))


def _gap_table(students: Mapping[str, Sequence[Mapping[str, float]]]) -> tuple[Sequence[Any], Sequence[Sequence[Any]]]:
    """The gap of each student in each segment, in percentage points."""
    count = max(len(segments) for segments in students.values())
    rows = [(name, *(f"{100 * one['gap']:.1f}" for one in segments)) for name, segments in students.items()]
    return ("gap in segment", *range(1, count + 1)), rows


def divergence(students: Mapping[str, Numbers], items: str, temperature: float) -> Section:
    text = (
        f"KL(p_t || p_s) of softmax(z / {temperature:g}), mean over all {items}, and over the tenth of lowest and the "
        "tenth of highest teacher entropy."
    )
    return Section("Divergence from the teacher", text, divergence_bars(students, items))


def _correlations(students: Mapping[str, Numbers], differences: Mapping[str, Any]) -> Section:
    text = (
        "How differently student and teacher relate the classes: the absolute difference of their correlation "
        "matrices, each of the classes' logits over the images. 0 where both agree, 2 at most."
    )
    found = {name: one["correlation_difference"] for name, one in students.items()}
    rows = [(name, f"{one['mean']:.4f}", f"{one['max']:.4f}") for name, one in found.items()]
    figure = heatmaps(differences)
    return Section("Correlations of the logits", text, figure, (("student", "mean", "largest"), rows))
