"""Numbers of the papers' figures for images and groups of images: energy, entropy, agreement, correlations.

n images, C classes. Energies are Energy KD's (T_E = 4), entropies and weights EA-KD's (T' = 3), as everywhere in hfkd.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfkd.losses import functional
from hfkd.losses.items import image_items
from hfkd.losses.logits.divergences import kl
from hfkd.losses.weightings import Entropy

SEGMENTS = 10
SHARE = 0.1  # share of images in the top and the bottom group


@dataclass(frozen=True)
class SampleNumbers:
    """For each image, [n]: energy, entropy, predicted class, and whether the prediction is right."""

    energy: Tensor
    entropy: Tensor
    predicted: Tensor
    correct: Tensor

    @property
    def accuracy(self) -> float:
        return mean_of(self.correct)


def mean_of(values: Tensor) -> float:
    return values.double().mean().item()


def sample_numbers(logits: Tensor, labels: Tensor) -> SampleNumbers:
    """logits [n, C], labels [n]"""
    predicted = logits.argmax(-1)
    return SampleNumbers(functional.energy(logits), functional.entropy(logits), predicted, predicted == labels)


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p_t || p_s) of each image, in nats, of softmax(z / temperature); no factor T². Logits [n, C] -> [n]."""
    log_t, log_s = (torch.log_softmax(logits.double() / temperature, -1) for logits in (teacher, student))
    return kl(log_t, log_s)


def ea_weight(teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:
    """EA-KD's weight of each image (Eq. 7), from both networks' logits [n, C] -> [n]."""
    return Entropy()(image_items(student, teacher, labels))


def extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the images with lowest and highest values, SHARE of all (at least one) each, in ascending order."""
    count = max(1, round(SHARE * len(values)))
    order = values.argsort(stable=True)
    return order[:count], order[-count:]


def mean_divergences(values: Tensor, groups: tuple[Tensor, Tensor]) -> dict[str, float]:
    """The mean of a `divergence` over all images, and over the `extremes` of the teacher's entropy."""
    low, high = (mean_of(values[rows]) for rows in groups)
    return {"kl": mean_of(values), "kl_lowest_entropy": low, "kl_highest_entropy": high}


def segments(
    entropy: Tensor, teacher_correct: Tensor, student_correct: Tensor, parts: int = SEGMENTS
) -> list[dict[str, float]]:
    """Accuracies in equally large segments of the images, from lowest entropy [n] to highest.

    gap: the teacher's accuracy minus the student's. With fewer images than `parts`, each is a segment.
    """
    rows = entropy.argsort(stable=True).tensor_split(min(parts, len(entropy)))
    found = []
    for part in rows:
        teacher, student = (mean_of(right[part]) for right in (teacher_correct, student_correct))
        found.append(
            {
                "images": len(part),
                "entropy": mean_of(entropy[part]),
                "teacher_accuracy": teacher,
                "student_accuracy": student,
                "gap": teacher - student,
            }
        )
    return found


def correlation_difference(teacher: Tensor, student: Tensor) -> Tensor:
    """|corr_t - corr_s| [C, C]: how far the correlations between the classes' logits, over the images, differ.

    Logits [n, C], n > 1. NaN for a class whose logit is the same for all images.
    """
    return (torch.corrcoef(teacher.double().T) - torch.corrcoef(student.double().T)).abs()


def compare(
    teacher: Tensor, student: Tensor, labels: Tensor, temperature: float = 1.0
) -> tuple[dict[str, Any], Tensor]:
    """Compare a student with its teacher: numbers, and the `correlation_difference`.

    Logits [n, C], labels [n]. agreement: share of images with the same prediction. kl: the mean `divergence`, also over
    the `extremes` of the teacher's entropy.
    """
    t, s = sample_numbers(teacher, labels), sample_numbers(student, labels)
    difference = correlation_difference(teacher, student)
    numbers = {
        "accuracy": s.accuracy,
        "gap": t.accuracy - s.accuracy,
        "agreement": mean_of(t.predicted == s.predicted),
        "entropy": mean_of(s.entropy),
        **mean_divergences(divergence(teacher, student, temperature), extremes(t.entropy)),
        "correlation_difference": _without_nan(difference),
        "by_teacher_entropy": segments(t.entropy, t.correct, s.correct),
        "by_student_entropy": segments(s.entropy, t.correct, s.correct),
    }
    return numbers, difference


def _without_nan(values: Tensor) -> dict[str, float]:
    known = values[~values.isnan()]
    if not len(known):
        return {"mean": float("nan"), "max": float("nan")}
    return {"mean": known.mean().item(), "max": known.max().item()}
