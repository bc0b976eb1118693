"""A section of the analysis page: the student's entropy and divergence at each checkpoint."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hfkd.reports import style
from hfkd.reports.html import Section
from hfkd.reports.style import Figure, new_figure, styled

DIVERGENCES = (
    ("kl_lowest_entropy", "lowest tenth of the teacher's entropy", style.LOW_ENERGY),
    ("kl", "all images", style.FAINT),
    ("kl_highest_entropy", "highest tenth", style.HIGH_ENERGY),
)


@styled
def checkpoints_figure(steps: list[Mapping[str, float]]) -> Figure:
    """The student's entropy (mean and standard deviation over images) and its divergences, by step."""
    figure, (left, right) = new_figure(8.4, 3.4, panels=2)
    column = {key: np.array([one[key] for one in steps]) for key in steps[0]}
    left.plot(column["step"], column["entropy"], marker="o", color=style.STUDENT)
    band = column["entropy"] - column["entropy_sd"], column["entropy"] + column["entropy_sd"]
    left.fill_between(column["step"], *band, color=style.STUDENT, alpha=0.15, linewidth=0)
    for key, label, color in DIVERGENCES:
        right.plot(column["step"], column[key], marker="o", color=color, label=label)
    left.set(title="student entropy (nats), mean ± sd of the images", xlabel="step", ylim=(0, None))
    right.set(title="KL(teacher || student), nats", xlabel="step", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def checkpoints_section(name: str, numbers: Mapping[str, Any], temperature: float) -> Section:
    varies = numbers["entropy_variability"]
    text = (
        f"Entropy of softmax(z / 3), and divergence of softmax(z / {temperature:g}), at each checkpoint of the run. "
        "Variability: the standard deviation of an image's entropy over the checkpoints, mean over the images: "
        f"{varies['all']:.4f} nats; over the tenth of lowest teacher entropy {varies['lowest']:.4f}, of highest "
        f"{varies['highest']:.4f}."
    )
    rows = [
        (f"{one['step']:g}", f"{100 * one['accuracy']:.2f}", *(f"{one[key]:.4f}" for key in ("entropy", "kl")))
        for one in numbers["steps"]
    ]
    table = (("step", "accuracy", "entropy", "divergence"), rows)
    return Section(f"Over the training of {name}", text, checkpoints_figure(numbers["steps"]), table)
