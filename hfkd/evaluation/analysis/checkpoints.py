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
    """The numbers of a student's logits [n, C] by step, beside its teacher's.

    At each step: accuracy; mean and standard deviation over the images of the student's entropy; mean `divergence`, of
    all images and of the tenths of lowest and highest teacher entropy. entropy_variability: how much an image's entropy
    varies over the checkpoints, the standard deviation (of K, not K - 1) over these, mean over the images; of the two
    tenths too. `students` has two steps at least.
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
