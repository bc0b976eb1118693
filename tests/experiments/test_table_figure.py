"""The figure of a table shows the numbers of the runs, and calls a difference shown only where its interval says so."""

import statistics

import numpy as np
import pytest
from matplotlib.colors import to_hex

from hfkd.experiments.resume import Run
from hfkd.experiments.table_figure import table_figure
from hfkd.reports import style

CURVES = {  # accuracies of each epoch, by method and seed
    "KD": {1: [0.20, 0.50], 2: [0.30, 0.60]},
    "EA-KD": {1: [0.40, 0.62], 2: [0.10, 0.721]},
    "DKD": {1: [0.50, 0.51], 2: [0.30, 0.57]},
}


def run(seed, scores, status="finished"):
    epochs = [{"epoch": 1.0 + i, "eval_accuracy": score} for i, score in enumerate(scores)]
    return Run({}, {"seed": seed, "epochs": epochs}, status)


def row(method, curves, teacher="cifar_wrn_40_2"):
    values = [100 * scores[-1] for scores in curves.values()]
    one = {"method": method, "teacher": teacher, "student": "cifar_resnet8", "seeds": list(curves)}
    return one | {"last": {"values": values}}


def figure(curves=CURVES, reference="KD", runs=None):
    rows = [row(method, its) for method, its in curves.items()]
    runs = runs or [[run(seed, scores) for seed, scores in its.items()] for its in curves.values()]
    return table_figure(rows, runs, reference)


def dots(axes):
    """The differences drawn for each row, by its name."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    drawn = {int(line.get_ydata()[0]): list(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"}
    return {name: drawn[place] for place, name in enumerate(names)}


def test_curves_are_the_means_of_the_seeds_in_percent():
    left, _ = figure().axes
    assert left.get_title(loc="left") == "wrn_40_2 → resnet8: accuracy (%)"
    assert [line.get_label() for line in left.lines] == list(CURVES)
    for line, its in zip(left.lines, CURVES.values(), strict=True):
        assert list(line.get_xdata()) == [1, 2]
        means = [100 * statistics.mean(both) for both in zip(*its.values(), strict=True)]
        np.testing.assert_allclose(line.get_ydata(), means)


def test_differences_are_of_the_same_seeds_with_their_interval():
    _, right = figure().axes
    assert {name: [round(x, 6) for x in found] for name, found in dots(right).items()} == {
        "EA-KD": [12.0, 12.1],
        "DKD": [1.0, -3.0],
    }
    bars = [container.lines for container in right.containers]
    ends = [bar[2][0].get_segments()[0][:, 0] for bar in bars]
    reach = 12.706204736 * 0.05  # t(1) at 97.5 %, times the standard error of 12.0 and 12.1
    np.testing.assert_allclose(ends[0], [12.05 - reach, 12.05 + reach])
    assert ends[1][0] < 0 < ends[1][1]
    assert [to_hex(bar[0].get_color()) == style.GREY.lower() for bar in bars] == [False, True]


def test_one_seed_has_no_interval_and_another_seed_no_difference():
    curves = {"KD": {1: [0.5]}, "EA-KD": {1: [0.6]}, "DKD": {2: [0.7]}}
    left, right = figure(curves).axes
    assert {name: [round(x, 6) for x in found] for name, found in dots(right).items()} == {"EA-KD": [10.0]}
    assert not right.containers
    assert len(left.lines) == 3


@pytest.mark.parametrize("curves", [{"EA-KD": CURVES["EA-KD"]}, {"KD": CURVES["KD"]}])
def test_without_two_rows_the_panel_says_why_it_is_empty(curves):
    _, right = figure(curves).axes
    assert [text.get_text() for text in right.texts] == ["no two rows with the same seed, one of them KD"]


def test_a_failed_run_and_epochs_that_one_seed_alone_has_are_not_in_the_curve():
    runs = [[run(1, [0.2, 0.3]), run(2, [0.4, 0.5, 0.9]), run(3, [0.9, 0.9], "failed")]]
    left, _ = figure({"KD": CURVES["KD"]}, runs=runs).axes
    assert list(left.lines[0].get_xdata()) == [1, 2]
    np.testing.assert_allclose(left.lines[0].get_ydata(), [30, 40])
    (empty, _) = figure({"KD": {}}, runs=[[run(3, [0.9], "failed")]]).axes
    assert [text.get_text() for text in empty.texts] == ["no accuracy was evaluated"]


def test_each_pair_of_networks_is_compared_with_its_own_reference():
    rows = [row(m, CURVES[m], teacher) for teacher in ("cifar_vgg13", "cifar_wrn_40_2") for m in ("KD", "EA-KD")]
    rows[0]["last"] = {"values": [10.0, 20.0]}
    made = [[run(seed, scores) for seed, scores in CURVES[one["method"]].items()] for one in rows]
    axes = table_figure(rows, made, "KD").axes
    assert [one.get_title(loc="left").split(":")[0] for one in axes[::2]] == [
        "vgg13 → resnet8",
        "wrn_40_2 → resnet8",
    ]
    found = [[round(x, 6) for x in dots(one)["EA-KD"]] for one in axes[1::2]]
    assert found == [[52.0, 52.1], [12.0, 12.1]]
