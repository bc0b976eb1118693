"""The means over an evaluation set that need no metric: the student's cross-entropy, and its KL to the teacher."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hfkd.losses.distillation import cross_entropy, has_label
from hfkd.losses.items import Items
from hfkd.losses.logits import KD
from hfkd.models.calling import logits_of
from hfkd.training.averages import RowAverage
from hfkd.training.host import Host


class EvaluatedMeans:
    """Those of one evaluation, in which every row counts exactly once on any number of ranks."""

    def __init__(self, trainer: Host) -> None:
        self.trainer = trainer
        self._average: RowAverage | None = None  # outside of an evaluation nothing is gathered

    @contextmanager
    def one_evaluation(self) -> Iterator[None]:
        """Context of one evaluation, also of one within another, as in a `compute_metrics` that predicts other rows."""
        outer = self._average
        self._average = RowAverage(finite_only=self.trainer.args.logging_nan_inf_filter)
        try:
            yield
        finally:
            self._average = outer

    @torch.no_grad()
    def add(self, student: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Add a batch; returns its cross-entropy and the student's output."""
        trainer = self.trainer
        output = trainer.call.output(student, inputs)
        logits = logits_of(output)[..., : trainer.num_classes]
        taught = self._taught(inputs)[..., : trainer.num_classes] if self._compared else logits

        def values_of(items: Items) -> dict[str, Tensor]:
            assert items.labels is not None
            found = {"loss": cross_entropy(items.student.logits, items.labels), "labelled": has_label(items.labels)}
            if taught is not logits:
                found["kl"] = KD(scale="none")(items, torch.ones_like(found["loss"]))
            return found

        values, rows = trainer.task.each_item(inputs, logits, taught, values_of)
        labelled = values.pop("labelled")
        if self._average is not None:
            self._average.add(values, rows, trainer.accelerator, {"loss": labelled})
        return values["loss"].sum() / labelled.sum().clamp(min=1), output

    @torch.no_grad()
    def add_kl(self, student: Any, batch: Any) -> tuple[Any, Any]:
        """Add a batch of a task without eval_loss; returns it, as `Task.after_student` makes it, and the output."""
        trainer = self.trainer
        output = trainer.call.output(student, batch)
        if self._compared:
            assert self._average is not None
            batch = trainer.task.after_student(batch, output)
            items = trainer.task.items(batch, logits_of(output), self._taught(batch))
            ones = torch.ones(len(items), device=items.sample.device)
            self._average.add({"kl": KD(scale="none")(items, ones)}, items.rows, trainer.accelerator)
        return batch, output

    def put_into(self, metrics: dict[str, float], prefix: str) -> None:
        assert self._average is not None
        metrics.update({f"{prefix}_{name}": value for name, value in self._average.read().items()})
        for name in self._average.uncounted:  # Trainer's mean over batches would report 0 for it
            metrics.pop(f"{prefix}_{name}", None)

    @property
    def _compared(self) -> bool:
        asked = self.trainer.args.evaluate_kl and self.trainer.teacher is not None
        return asked and self._average is not None

    def _taught(self, batch: Mapping[str, Any]) -> Any:
        trainer = self.trainer
        return trainer.evaluated_network(trainer.teacher)(**trainer.task.for_teacher(batch))
