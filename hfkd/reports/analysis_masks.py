"""The page of an analysis of segmentation networks."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from hfkd.reports.analysis_page import by_teacher, divergence, networks_table, percent
from hfkd.reports.html import Section, write_page
from hfkd.reports.masks import MaskExample, mask_sections

Numbers = Mapping[str, Any]
ITEMS = "labelled pixels"
TEXT = (
    "In percent, gaps in percentage points, over all labelled pixels. Agreement: share of pixels for which student and "
    "teacher predict the same class. Entropy: that of softmax(z / 3), in nats, mean over these pixels."
)
SCORES = (
    *(("mean IoU", "mean_iou"), ("gap", "mean_iou_gap"), ("pixel accuracy", "pixel_accuracy")),
    *(("gap", "pixel_accuracy_gap"), ("agreement", "agreement")),
)
LEFT_OUT = (
    "t-SNE of features, correlations of the logits, loss landscapes and checkpoints of a run are available for "
    "image classifiers only, as they are defined for one prediction per image."
)


def mask_analysis_page(
    path: str | os.PathLike[str], numbers: Numbers, examples: Sequence[MaskExample], label_names: Sequence[str]
) -> None:
    """Write the page with the results of `PixelNumbers.result`, their settings, and a few images."""
    teacher, students = numbers["teacher"], numbers["students"]
    height, width = numbers["image_size"]
    summary = {
        "teacher": f"{teacher['name']} (mean IoU {percent(teacher['mean_iou'])} %)",
        "students": ", ".join(students),
        "images": f"{numbers['images']:,} of {numbers['dataset']}, {height} x {width}",
        "labelled pixels": f"{numbers['pixels']:,}",
        "classes": numbers["classes"],
    }
    sections = [
        networks_table("Mean IoU and pixel accuracy", TEXT, teacher, students, SCORES),
        by_teacher("Pixel accuracy", students, ITEMS),
        divergence(students, ITEMS, numbers["settings"]["kl_temperature"]),
        *mask_sections(examples, label_names),
        Section("Left out", LEFT_OUT),
    ]
    write_page(path, f"Analysis: {teacher['name']} and its students", sections, summary)
