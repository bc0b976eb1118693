"""Reports of a run: `results.json`, figures and an HTML page. Only the figures need matplotlib."""

from hfkd.reports.environment import environment
from hfkd.reports.figures import (
    accuracy_by_entropy,
    comparison_bars,
    energy_histogram,
    image_grid,
    mean_prediction,
    training_curves,
)
from hfkd.reports.html import Section, write_page
from hfkd.reports.page import distillation_page
from hfkd.reports.results import ResultsCallback

__all__ = [
    "ResultsCallback",
    "Section",
    "accuracy_by_entropy",
    "comparison_bars",
    "distillation_page",
    "energy_histogram",
    "environment",
    "image_grid",
    "mean_prediction",
    "training_curves",
    "write_page",
]
