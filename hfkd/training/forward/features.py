"""Inner features of both networks, captured by the forward passes in addition to the logits.

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
from hfkd.utils.attention import Attention


@dataclass
class InnerFeatures:
    """Captures the features of student and teacher while they run; by default there are none.

    fixed: layers of the student that need no gradient.
    decoder_mask: the task's, if some layers are in the decoder of an encoder-decoder.
    frames: makes a mask over L frames from L and one over samples of sound; None: states have the mask's positions.
    """

    student: FeatureCapture | None = None
    teacher: FeatureCapture | None = None
    fixed: tuple[str, ...] = ()
    decoder_mask: Callable[[Mapping[str, Any]], Tensor | None] | None = None
    frames: Callable[[int, Tensor], Tensor] | None = None

    @property
    def wanted(self) -> bool:
        return self.student is not None or self.teacher is not None

    def remove(self) -> None:
        """Remove all hooks."""
        for capture in (self.student, self.teacher):
            if capture is not None:
                capture.remove()

    def of_student(self, forward: Callable[[], Result]) -> tuple[Result, dict[str, Any]]:
        """The result of `forward`, which runs the student once, and the student's features.

        Raises ValueError for a feature without a gradient: its term of the loss would not train the student.
        """
        if self.student is None:
            return forward(), {}
        result, found = self.student.run(forward)
        for key, feature in found.items() if torch.is_grad_enabled() else ():
            if not feature.requires_grad and key not in self.fixed:
                raise ValueError(
                    f"layer {key!r} of the student has no gradient, so that its term of the loss would train "
                    "nothing: all parameters before it are frozen, or it runs under reentrant gradient "
                    "checkpointing; unfreeze some, choose a later layer, or set use_reentrant=False"
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
        """`items` with the features of both networks; student, teacher: logits and captured features."""
        if not self.wanted:
            return items
        mine = replace(items.student, kept=_features(self.student, *student))
        its = replace(items.teacher, kept=_features(self.teacher, *teacher))
        return self._masked(replace(items, student=mine, teacher=its), batch, student[1])

    def beside(
        self,
        items: HiddenItems,
        batch: Mapping[str, Any],
        student: tuple[Tensor, dict[str, Any]],
        teacher: tuple[Tensor, dict[str, Any]],
    ) -> HiddenItems:
        """`joined` for a loss over chunks: the features are in `items.beside`, which has no logits."""
        if not self.wanted:
            return items
        rows = len(student[0])
        outputs = FeatureOutputs(_features(self.student, *student)), FeatureOutputs(_features(self.teacher, *teacher))
        place: dict[str, Any] = {"index": items.index, "seed": items.seed, "step": items.step}
        samples = items.sample, items.num_samples
        plain = Items(*outputs, items.labels, *samples, items.progress, row=items.row, num_rows=rows, **place)
        return replace(items, beside=self._masked(plain, batch, student[1]))

    def _masked(self, items: Items, batch: Mapping[str, Any], found: Mapping[str, Any]) -> Items:
        """`items` with the masks of their rows."""
        mask = batch.get("attention_mask")
        return replace(
            items,
            mask=self._of_states(mask, found) if isinstance(mask, Tensor) and mask.ndim == 2 else None,
            decoder_mask=None if self.decoder_mask is None else self.decoder_mask(batch),
        )

    def _of_states(self, mask: Tensor, found: Mapping[str, Any]) -> Tensor:
        """The mask over the positions of the student's states."""
        length = next((length for one in found.values() if (length := _length(one)) is not None), None)
        return mask if self.frames is None or length is None else self.frames(length, mask)


def _length(feature: Any) -> int | None:
    """L of states [B, L, H] or of an attention; None for other features."""
    if isinstance(feature, Attention):
        return feature.query.shape[-2]
    return feature.shape[1] if feature.ndim == 3 else None


def _features(capture: FeatureCapture | None, logits: Tensor, found: dict[str, Any]) -> dict[str, Any]:
    return found | {LOGITS: logits} if capture is not None and LOGITS in capture.keys else found


def of_outputs(capture: FeatureCapture, logits: Tensor, found: dict[str, Any]) -> Outputs:
    return Outputs(logits, _features(capture, logits, found))
