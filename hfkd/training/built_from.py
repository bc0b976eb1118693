"""What a trainer was built from, and what has been set in its place when a training starts."""

import logging
from typing import Any

import torch
from torch import Tensor

from hfkd.data.he_da import original_images
from hfkd.losses.temperatures import Fitted
from hfkd.teachers.fingerprint import sampled_weights
from hfkd.training.forward.he_da import without_he_da
from hfkd.training.given_teacher import cached_teacher
from hfkd.training.own_attributes import kinds_of
from hfkd.training.set_too_late import planned, taken

logger = logging.getLogger(__name__)


class BuiltFrom:
    """The training rows, the teacher and the arguments of a trainer that has been built.

    taken: the arguments that were read once. planned: those that the current training was planned with. kinds: the
    classes of the trainer's own attributes.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.rows, self.teacher = trainer, trainer.train_dataset, trainer.teacher
        self.taken, self.kinds = taken(trainer.args), kinds_of(trainer)
        self.planned: dict[str, Any] = {}
        self._said = False
        self._weights = self._teacher_weights()

    def renew(self) -> None:
        """Called when a training starts: take the rows and the teacher's weights as they are now."""
        self.planned = planned(self.trainer.args)
        self._said = False
        self._take_rows()
        self._take_teacher()

    def _take_rows(self) -> None:
        """Training rows that have been set since: what was found out is of those before."""
        trainer, rows = self.trainer, self.trainer.train_dataset
        if rows is self.rows or rows is None:
            return
        trainer.data_collator = trainer.setup.take_collator(trainer.data_collator)  # it may have been set with the rows
        trainer.class_names = trainer.setup.take_rows(rows, trainer.eval_dataset)
        self._look_anew(rows)
        trainer.record = trainer.record.of_rows(rows)
        self.rows = rows
        self._say_kept_thresholds("train_dataset has other rows")

    def _take_teacher(self) -> None:
        """The teacher's weights, if it has been trained since: what was found out is of those before."""
        trainer, weights = self.trainer, self._teacher_weights()
        if self.teacher is None or torch.equal(weights, self._weights):
            return
        if trainer.args.he_da == "paper":
            trainer.train_dataset = self.rows = original_images(trainer.train_dataset)
        self._look_anew(trainer.train_dataset)
        # Last, as an interrupt may come before.
        self._weights, trainer.record = weights, trainer.record.of_teacher(self.teacher)
        self._say_kept_thresholds("The teacher has other weights")

    def say_other_teacher(self) -> None:
        """Called when a checkpoint is written: warn, once in a training, if the teacher has other weights by now."""
        if self._said or self.teacher is None or torch.equal(self._teacher_weights(), self._weights):
            return
        self._said = True
        logger.warning(
            "The teacher's weights have changed since the training began. Checkpoints do not have them, so that a "
            "resumed run would begin with the teacher that it is given: save them in on_save, and load them in "
            "on_train_begin (docs/own_method.md, A teacher that changes)."
        )

    def _look_anew(self, rows: Any) -> None:
        """Forget the stored outputs and HE-DA's choice of before."""
        trainer = self.trainer
        trainer.step = without_he_da(trainer.step)
        given = trainer.teacher, rows, trainer.distillation_loss, trainer.args, trainer.accelerator
        trainer.cached_teacher = cached_teacher(*given)

    def _say_kept_thresholds(self, what: str) -> None:
        slot = self.trainer.distillation_loss.temperature
        if self.trainer.scan_result is not None and isinstance(slot, Fitted):
            logger.warning("%s: the thresholds of %r stay those of before.", what, slot)

    def _teacher_weights(self) -> Tensor:
        """A sample of them; none of a sharded teacher, whose weights are elsewhere."""
        sharded = self.teacher is None or self.trainer.args.shard_teacher
        return sampled_weights(() if sharded else self.teacher.networks)
