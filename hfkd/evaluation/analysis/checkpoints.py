"""A student over its training: entropy and divergence from the teacher at each checkpoint of a run.

n images, K checkpoints, C classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hfkd.evaluation.analysis.samples import divergence, extremes, mean_divergences, mean_of, sample_numbers


def over_checkpoints(
    teacher: Tensor, students: Mapping[int, Tensor], labels: Tensor, temperature: float = 1.0
) -> dict[str, Any]:
    """Numbers of a student's logits [n, C] by step, compared with its teacher's.

    At each step: accuracy; mean and standard deviation over the images of the student's entropy; mean `divergence`,
    over all images and over the tenths with the lowest and highest teacher entropy. entropy_variability: the standard
    deviation (with K, not K - 1) of an image's entropy over the checkpoints, averaged over all images and over the two
    tenths. `students` needs at least two steps.
    """
    low, high = extremes(sample_numbers(teacher, labels).entropy)
    steps, entropies = [], []
    for step, logits in sorted(students.items()):
        own, apart = sample_numbers(logits, labels), divergence(teacher, logits, temperature)
        entropies.append(own.entropy.double())
        spread = own.entropy.double().std(correction=0).item()
        at_step = {"step": step, "accuracy": own.accuracy, "entropy": mean_of(own.entropy), "entropy_sd": spread}
        steps.append(at_step | mean_divergences(apart, (low, high)))
    varies = torch.stack(entropies).std(0, correction=0)  # [n]
    variability = {"all": mean_of(varies), "lowest": mean_of(varies[low]), "highest": mean_of(varies[high])}
    return {"steps": steps, "entropy_variability": variability}
