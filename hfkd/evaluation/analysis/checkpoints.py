"""A student over its training: entropy and divergence from the teacher at each checkpoint of a run.

n images, K checkpoints, C classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hfkd.evaluation.analysis.samples import divergence, extremes, sample_numbers


def over_checkpoints(
    teacher: Tensor, students: Mapping[int, Tensor], labels: Tensor, temperature: float = 1.0
) -> dict[str, Any]:
    """Numbers of a student's logits [n, C] by step, compared with its teacher's.

    At each step: accuracy; mean and standard deviation over the images of the student's entropy; mean `divergence`,
    over all images and over the tenths with the lowest and highest teacher entropy. entropy_variability: the standard
    deviation (with K, not K - 1) of an image's entropy over the checkpoints, averaged over all images and over the two
    tenths. `students` needs at least two steps.
    """
    groups = dict(zip(("lowest", "highest"), extremes(sample_numbers(teacher, labels).entropy), strict=True))
    steps, entropies = [], []
    for step, logits in sorted(students.items()):
        own, apart = sample_numbers(logits, labels), divergence(teacher, logits, temperature)
        entropies.append(own.entropy.double())
        at_step = {"step": step, "accuracy": own.accuracy, "entropy": own.entropy.double().mean().item()}
        at_step |= {"entropy_sd": own.entropy.double().std(correction=0).item(), "kl": apart.mean().item()}
        steps.append(at_step | {f"kl_{name}_entropy": apart[rows].mean().item() for name, rows in groups.items()})
    varies = torch.stack(entropies).std(0, correction=0)  # [n]
    variability = {"all": varies.mean().item()} | {name: varies[rows].mean().item() for name, rows in groups.items()}
    return {"steps": steps, "entropy_variability": variability}
