"""Every figure draws, also at its edges, and touches no global state."""

import numpy as np
import pytest
import torch
from processes import start_script

from hfkd.evaluation.analysis.landscape import Landscape
from hfkd.reports import (
    accuracy_by_entropy,
    comparison_bars,
    energy_histogram,
    image_grid,
    mean_prediction,
    training_curves,
)
from hfkd.reports.analysis_figures import segment_accuracy
from hfkd.reports.analysis_landscape import landscape_lines
from hfkd.reports.style import figure_bytes

TRAIN = [{"loss": 3.0 - e, "ce": 1.0, "kd": 2.0, "epoch": float(e), "step": e} for e in (1, 2)]
EVAL = [{"eval_accuracy": 0.3 * e, "eval_loss": 1.0 / e, "epoch": float(e), "step": e} for e in (1, 2)]
RNG = np.random.default_rng(0)
SOFT = torch.softmax(torch.randn(6, 100, generator=torch.Generator().manual_seed(0)), -1)

FIGURES = {
    "curves": lambda: training_curves([*TRAIN, *EVAL]),
    "curves, one epoch": lambda: training_curves([TRAIN[0], EVAL[0]]),
    "curves, no evaluation": lambda: training_curves(TRAIN),
    "curves, no training": lambda: training_curves(EVAL),
    "curves, nothing": lambda: training_curves([]),
    "curves, diverged": lambda: training_curves([{"loss": float("nan"), "epoch": 1.0}, *EVAL]),
    "curves, results.json": lambda: training_curves([a | b for a, b in zip(TRAIN, EVAL, strict=True)]),
    "curves, seven losses": lambda: training_curves([{f"{i}_loss": 1.0, "epoch": 1.0} for i in range(7)]),
    "energies": lambda: energy_histogram(RNG.normal(size=500), (-1.0, 1.0)),
    "energies, no thresholds": lambda: energy_histogram(torch.randn(50).bfloat16()),
    "energies, constant": lambda: energy_histogram(np.full(9, -3.0), (-3.0, -3.0)),
    "energies, one": lambda: energy_histogram([1.0], (-9.0, 9.0)),
    "images": lambda: image_grid(torch.zeros(9, 3, 8, 8, dtype=torch.uint8), [str(i) for i in range(9)]),
    "images, one, wide, gray": lambda: image_grid(np.zeros((1, 4, 9, 1), np.uint8)),
    "prediction": lambda: mean_prediction({"low energy": SOFT, "high energy": SOFT.numpy()}),
    "prediction, one group, one-hot": lambda: mean_prediction({"all": np.eye(3)}),
    "prediction, two classes": lambda: mean_prediction({"a": SOFT[:, :2], "b": SOFT}),
    "segments": lambda: accuracy_by_entropy(RNG.random(100), RNG.random(100) > 0.5, np.ones(100)),
    "segments, n < segments": lambda: accuracy_by_entropy([0.1, 0.2, 0.3], [True, False, True], torch.ones(3)),
    "segments, equal entropies": lambda: accuracy_by_entropy(np.zeros(20), np.ones(20), np.zeros(20)),
    "comparison": lambda: comparison_bars([("KD", 73.0, 0.1, [72.9, 73.1]), ("EA-KD", 74.0, 0.2, [73.8, 74.2])]),
    "comparison, one seed": lambda: comparison_bars([("KD", 73.0, None, [73.0])]),
    "comparison, no seeds": lambda: comparison_bars([("KD", 73.0, float("nan"), [])]),
}


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES.keys())
def test_draws(make):
    kind, data = figure_bytes(make())
    assert data.startswith(b"\x89PNG") if kind == "image/png" else b"<svg" in data
    assert len(data) < 300_000


def test_images_are_png_and_lines_svg():
    assert figure_bytes(FIGURES["images"]())[0] == "image/png"
    assert figure_bytes(FIGURES["energies"]())[0] == "image/svg+xml"


def test_same_figure_same_bytes():
    assert figure_bytes(FIGURES["curves"]()) == figure_bytes(FIGURES["curves"]())


def test_segments_hold_equal_counts_in_order_of_entropy():
    entropy = np.array([3.0, 1.0, 2.0, 4.0])
    axes = accuracy_by_entropy(entropy, [0, 1, 1, 0], [1, 1, 1, 0], segments=2).axes[0]
    student, teacher = ([bar.get_height() for bar in bars] for bars in axes.containers)
    assert student == [100, 0]
    assert teacher == [100, 50]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1.50", "3.50"]


def test_mean_prediction_sorts_each_sample():
    line = mean_prediction({"all": [[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]]}).axes[0].lines[0]
    assert line.get_ydata() == pytest.approx([0.6, 0.25, 0.15])


def test_thresholds_are_labelled_with_their_shares():
    texts = [text.get_text() for text in energy_histogram(np.arange(10.0), (2.0, 7.0)).axes[0].texts]
    assert any("low energy" in text and "20.0 %" in text for text in texts)
    assert any("high energy" in text and "20.0 %" in text for text in texts)


def test_accuracies_in_percent_or_fractions_look_the_same():
    fractions = training_curves(EVAL).axes[1].lines[0].get_ydata()
    percents = training_curves([row | {"eval_accuracy": 100 * row["eval_accuracy"]} for row in EVAL])
    assert fractions == pytest.approx(percents.axes[1].lines[0].get_ydata()) == [30, 60]


def test_average_precision_is_percent_however_low():
    low = [{"eval_ap": 0.54, "eval_ap50": 2.44, "epoch": 15.0}]
    axes = training_curves(low).axes[1]
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.54], [2.44]]
    assert axes.get_xlim()[0] == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: energy_histogram([]), "energies has shape"),
        (lambda: energy_histogram([1.0, np.nan]), "1 non-finite values among 2"),
        (lambda: energy_histogram([1.0], (2.0, 1.0)), "not in order"),
        (lambda: image_grid(np.zeros((1, 3, 4, 4))), "float64.*uint8"),
        (lambda: image_grid(np.zeros((2, 5, 4, 4), np.uint8)), r"\(2, 5, 4, 4\)"),
        (lambda: image_grid(np.zeros((0, 3, 4, 4), np.uint8)), "n > 0"),
        (lambda: image_grid(np.zeros((2, 3, 4, 4), np.uint8), ["one"]), "1 captions for 2 images"),
        (lambda: mean_prediction({}), "empty"),
        (lambda: mean_prediction({"low": np.ones(3)}), "'low' has shape"),
        (lambda: accuracy_by_entropy([1.0, 2.0], [1, 0], [1]), "teacher_correct has 1"),
        (lambda: comparison_bars([]), "empty"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_leaves_the_callers_matplotlib_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure_bytes(FIGURES["curves"]())
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib_the_package_imports_and_with_it_pyplot_stays_out(tmp_path):
    code = """
import sys
assert not [name for name in sys.modules if name.startswith("matplotlib")]  # the process has imported hfkd already
for name in [name for name in sys.modules if name.startswith("hfkd.reports")]:
    del sys.modules[name]
sys.modules["matplotlib"] = None
import hfkd.reports as report
from hfkd.reports.style import figure_bytes
try: report.training_curves([])
except ImportError as error: assert "pip install 'hfkd[demo]'" in str(error)
else: raise AssertionError
del sys.modules["matplotlib"]
figure_bytes(report.energy_histogram([1.0, 2.0], (1.0, 2.0)))
assert "matplotlib.pyplot" not in sys.modules
"""
    (tmp_path / "code.py").write_text(code)
    process = start_script(tmp_path / "log", tmp_path / "code.py")
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "log").read_text()


def test_every_term_of_the_loss_has_its_curve():
    parts = dict.fromkeys(["loss", "ce", "kd", "relations", "mixed_kd", "fitnet", "fitnet_2", "router_loss"], 2.0)
    others = dict.fromkeys(["temperature", "weight", "low_energy_share", "grad_norm", "learning_rate"], 1.0)
    left = training_curves([{"epoch": e, **parts, **others} for e in (1, 2)]).axes[0]
    assert {line.get_label() for line in left.lines} == {f"training {name}" for name in parts}


def looks(axes):
    return [
        (line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines if line.get_label()[0] != "_"
    ]


def test_no_two_curves_of_a_figure_look_alike():
    students = [f"student {n}" for n in range(7)]
    parts = ["loss", "ce", "kd", *(f"fitnet_{n}" for n in range(2, 7)), "eval_loss"]
    segments = [{"teacher_accuracy": 0.9, "student_accuracy": 0.5, "gap": 0.4}] * 3
    flat = Landscape(torch.linspace(-1, 1, 3), torch.ones(3))
    figures = {
        training_curves([{"epoch": e, **dict.fromkeys(parts, 1.0)} for e in (1, 2)]): len(parts),
        segment_accuracy(dict.fromkeys(students, segments), True): 8,
        segment_accuracy(dict.fromkeys(students, segments), False): 14,
        landscape_lines(dict.fromkeys(students, flat)): 8,
    }
    for figure, curves in figures.items():
        found = looks(figure.axes[0])
        assert len(set(found)) == len(found) == curves
