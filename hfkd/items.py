"""Items: what a loss sees. The only file that knows whether an item is an image or a token.

N items, B batch rows, L length, C classes or vocabulary, V vocabulary.
An item is an image, or one unmasked target token. A sample is an image or a whole sequence: `sample[n]` says which.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hfkd import signals

IGNORED = -100  # the label Hugging Face models skip


@dataclass(frozen=True)
class Outputs:
    """What one network said: logits [N, C] and, where an objective wants them, hidden states, each [N, ...]."""

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()

    def energy(self, temperature: float) -> Tensor:
        """`signals.energy` of each item [N]. Slots ask here, not the logits: a chunked loss never holds those whole."""
        return signals.energy(self.logits, temperature)

    def entropy(self, temperature: float) -> Tensor:
        """`signals.entropy` of each item [N]."""
        return signals.entropy(self.logits, temperature)

    @property
    def num_classes(self) -> int:
        return self.logits.shape[-1]


@dataclass(frozen=True)
class Items:
    """N items with what student and teacher said about them.

    labels: [N] class ids, or [N, C] when MixUp or CutMix mixed them. sample: [N] ints below `num_samples`.
    progress: epochs done so far, fractional; warm-ups and schedules read it.
    """

    student: Outputs
    teacher: Outputs
    labels: Tensor
    sample: Tensor
    num_samples: int
    progress: float = 0.0

    def __len__(self) -> int:
        return self.sample.shape[0]

    def mean_over_sample(self, values: Tensor) -> Tensor:
        """[N] -> [N]: the mean over the items of each item's sample. For images the value itself, bit for bit."""
        sums = values.new_zeros(self.num_samples).index_add(0, self.sample, values)
        counts = values.new_zeros(self.num_samples).index_add(0, self.sample, torch.ones_like(values))
        return (sums / counts.clamp(min=1))[self.sample]


def image_items(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    student_hidden: Sequence[Tensor] = (),
    teacher_hidden: Sequence[Tensor] = (),
    progress: float = 0.0,
) -> Items:
    """One item an image: logits [B, C], labels [B] or [B, C] -> N = B items."""
    _same_classes(student_logits, teacher_logits)
    return Items(
        Outputs(student_logits, tuple(student_hidden)),
        Outputs(teacher_logits, tuple(teacher_hidden)),
        labels,
        sample=torch.arange(len(labels), device=labels.device),
        num_samples=len(labels),
        progress=progress,
    )


def count_image_items(labels: Tensor) -> int:
    """How many items `image_items` makes of these labels: the number the summed loss is divided by."""
    return labels.shape[0]


def _same_classes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape[-1] != teacher_logits.shape[-1]:
        raise ValueError(
            f"the student gives {student_logits.shape[-1]} classes and the teacher {teacher_logits.shape[-1]}: "
            "logit distillation compares them one by one; give the student the teacher's number of labels"
        )
