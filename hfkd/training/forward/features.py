"""Inner features of both networks beside their logits, for the forward passes that give them.

B rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hfkd.losses.chunked_outputs import FeatureOutputs
from hfkd.losses.items import HiddenItems, Items
from hfkd.losses.outputs import Outputs
from hfkd.models.feature_capture import LOGITS, FeatureCapture, Result


@dataclass
class InnerFeatures:
    """What is kept of student and teacher while they run; without captures, as by default, nothing.

    fixed: the student's layers that have no gradient, and need none.
    seed, steps: what `Items` say beside features: the run's seed, and how many optimizer steps are taken.
    """

    student: FeatureCapture | None = None
    teacher: FeatureCapture | None = None
    seed: int = 0
    steps: Callable[[], int] = int
    fixed: tuple[str, ...] = ()

    @property
    def wanted(self) -> bool:
        return self.student is not None or self.teacher is not None

    def remove(self) -> None:
        """Leave the networks as they were."""
        for capture in (self.student, self.teacher):
            if capture is not None:
                capture.remove()

    def of_student(self, forward: Callable[[], Result]) -> tuple[Result, dict[str, Any]]:
        """What `forward`, which runs the student once, returns; and the student's features.

        Raises ValueError for a feature that nothing which trains has a part in: its term would move nothing.
        """
        if self.student is None:
            return forward(), {}
        result, found = self.student.run(forward)
        for key, feature in found.items() if torch.is_grad_enabled() else ():
            if not feature.requires_grad and key not in self.fixed:
                raise ValueError(
                    f"layer {key!r} of the student has no gradient, so that its term would move nothing: what comes "
                    "before it is frozen, or runs under reentrant gradient checkpointing (use_reentrant=False keeps it)"
                )
        return result, found

    def of_teacher(self, forward: Callable[[], Result]) -> tuple[Result, dict[str, Any]]:
        return (forward(), {}) if self.teacher is None else self.teacher.run(forward)

    def joined(
        self,
        items: Items,
        batch: Mapping[str, Any],
        student: tuple[Tensor, dict[str, Any]],
        teacher: tuple[Tensor, dict[str, Any]],
    ) -> Items:
        """`items` with the features of both networks, of which each gave these logits and features."""
        if not self.wanted:
            return items
        mine = replace(items.student, kept=_features(self.student, *student))
        its = replace(items.teacher, kept=_features(self.teacher, *teacher))
        return self._with_place(replace(items, student=mine, teacher=its), batch, len(student[0]))

    def beside(
        self,
        items: HiddenItems,
        batch: Mapping[str, Any],
        student: tuple[Tensor, dict[str, Any]],
        teacher: tuple[Tensor, dict[str, Any]],
    ) -> HiddenItems:
        """`joined` for a loss over chunks: `items` beside which are the same ones with features, and no logits."""
        if not self.wanted:
            return items
        rows = len(student[0])
        outputs = FeatureOutputs(_features(self.student, *student)), FeatureOutputs(_features(self.teacher, *teacher))
        samples = items.sample, items.num_samples
        plain = Items(*outputs, items.labels, *samples, items.progress, row=items.row, num_rows=rows)
        return replace(items, beside=self._with_place(plain, batch, rows))

    def _with_place(self, items: Items, batch: Mapping[str, Any], rows: int) -> Items:
        """`items` with what random parts are drawn from and which positions are no padding."""
        mask, index = batch.get("attention_mask"), batch.get("index")
        views = rows // max(len(index), 1) if isinstance(index, Tensor) else 1
        return replace(
            items,
            index=index.repeat(views) if isinstance(index, Tensor) else None,
            seed=self.seed,
            step=self.steps(),
            mask=mask if isinstance(mask, Tensor) and mask.ndim == 2 else None,
        )


def _features(capture: FeatureCapture | None, logits: Tensor, found: dict[str, Any]) -> dict[str, Any]:
    return found | {LOGITS: logits} if capture is not None and LOGITS in capture.keys else found


def of_outputs(capture: FeatureCapture, logits: Tensor, found: dict[str, Any]) -> Outputs:
    return Outputs(logits, _features(capture, logits, found))
