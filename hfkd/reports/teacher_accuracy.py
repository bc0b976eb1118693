"""Measures the teacher's accuracy on the evaluation set, in one pass when training starts.

N items, C classes, K teachers.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.data_loader import DataLoaderStateMixin
from torch import Tensor
from tqdm.auto import tqdm
from transformers import TrainerCallback

from hfkd.data.first_rows import sets_by_name
from hfkd.losses.items import Items
from hfkd.reports.history import teacher_scores
from hfkd.tasks.base import Task
from hfkd.teachers import FrozenTeacher
from hfkd.teachers.agreement import everywhere
from hfkd.teachers.fingerprint import sampled_weights
from hfkd.training.averages import RowAverage
from hfkd.training.evaluation_loaders import read_whole
from hfkd.training.host import Host
from hfkd.training.validation.given_inputs import missing_inputs
from hfkd.training.validation.normalisation import receiving
from hfkd.utils.random_state import kept_random_state

logger = logging.getLogger(__name__)

TEXT_ROWS = 256  # limit for language models, whose teachers may be very large
ENOUGH = 30  # minimum number of items for a comparison with chance
QUANTILE = 2.326  # of the normal distribution, at 99 %


class TeacherAccuracy(TrainerCallback):
    """Logs `teacher_accuracy` when training starts, unless `evaluate_teacher=False` or there is nothing to measure.

    The share of items of the evaluation set whose label is the teacher's top class: images, or a language model's next
    tokens on the first `TEXT_ROWS` rows; (row, label) pairs for multi-label tasks. With several teachers it is that of
    their mean logits, and `teacher_1_accuracy`, ... those of each; with several evaluation sets the set's name is
    appended. It uses the precision of evaluation. It is skipped for stored teachers and `Peers`, for kd_weight 0, and
    for labels that are not class ids. It is logged once per run, and not again when a run is resumed. It does not
    affect training: random states are restored. Warns if the teacher is no better than chance.
    """

    def __init__(self, trainer: Host) -> None:
        self.trainer = trainer
        self.measured: dict[str, float] | None = None  # kept for a second train(), and for retries with a smaller batch
        self._of: tuple[Any, ...] = None, None, []  # the evaluation set, the teacher's order of classes, its weights

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if teacher_scores(state.log_history):
            return
        teacher = self.trainer.teacher
        order = getattr(teacher, "order", None)
        weights = sampled_weights(() if teacher is None else teacher.networks).tolist()
        now = self.trainer.eval_dataset, None if order is None else order.tolist(), weights
        if self.measured is None or self._of[0] is not now[0] or self._of[1:] != now[1:]:
            self.measured, self._of = measure(self.trainer), now
        if self.measured:
            self.trainer.log(dict(self.measured))


def measure(trainer: Host) -> dict[str, float]:
    """`teacher_accuracy` etc. by name, for each evaluation set; empty if there is nothing to measure."""
    live = trainer.teacher
    wanted = trainer.args.evaluate_teacher and trainer.distillation_loss.kd_weight and trainer.eval_dataset is not None
    if not wanted or live is None or not live.networks or trainer.task.predicts:
        return {}
    scores: dict[str, float] = {}
    with kept_random_state():
        for name, dataset in sets_by_name(trainer.eval_dataset, "").items():
            with receiving(live, trainer.image_inputs, dataset):
                loader = trainer.get_eval_dataloader(name or dataset)
                with read_whole(loader, trainer.accelerator):
                    found = _score(trainer, live, loader)
            scores |= {f"{key}_{name}" if name else key: value for key, value in found.items()}
    return scores


@torch.no_grad()
def _score(trainer: Host, teacher: FrozenTeacher, loader: Any) -> dict[str, float]:
    network, average = trainer.evaluated_network(teacher), RowAverage()
    if network is teacher:
        network = teacher.uncompiled  # avoids compiling for another batch size
    lacking = [missing_inputs(one) for one in teacher.networks]
    counts: list[Tensor] = []  # number of items of each class [C]; at most one entry
    for batch in _batches(trainer, loader):
        inputs = trainer.as_networks_take_it(trainer._prepare_inputs(batch), training=False)
        if not everywhere(_readable(trainer.task, teacher, lacking, inputs), trainer.accelerator):
            return {}
        inputs = dict(trainer.task.for_teacher(inputs))
        logits = network(each=True, **inputs)[..., : trainer.num_classes]
        first = logits if teacher.answers == 1 else logits[0]
        hits, rows = trainer.task.each_item(inputs, first, logits, partial(_hits, trainer.task.class_ids, counts))
        average.add(hits, rows, trainer.accelerator)
    scores = average.read()
    if counts and scores and trainer.task.class_ids:  # for rare positive labels, always predicting negative is accurate
        _warn_near_chance(scores, trainer.accelerator.reduce(counts[0]))
    return scores


def _readable(task: Task, teacher: FrozenTeacher, lacking: Sequence[Any], inputs: Mapping[str, Any]) -> bool:
    """Whether a batch has what the teacher reads, and labels that are class ids. lacking: `missing_inputs` of each."""
    if not task.teacher_reads(inputs):
        return False
    inputs = task.for_teacher(inputs)
    # Logits that are stored for the training rows alone, say.
    if not teacher.reads(inputs) or any(missing(inputs) for missing in lacking):
        return False
    labels = inputs.get("labels")
    return isinstance(labels, Tensor) and not (labels.is_floating_point() and task.class_ids)


def _hits(class_ids: bool, counts: list[Tensor], items: Items) -> dict[str, Tensor]:
    """Whether the teacher (and each of several) is right on each item [N]; adds the items' classes to `counts`."""
    assert items.labels is not None
    voices = {"teacher_accuracy": items.teacher}
    voices |= {f"teacher_{k}_accuracy": one for k, one in enumerate(items.teachers, 1)}
    target = items.labels if class_ids else items.labels.argmax(-1)  # negative or positive
    found = torch.bincount(target, minlength=items.teacher.num_classes)
    counts[:] = [found + counts[0]] if counts else [found]
    return {name: (one.logits.argmax(-1) == target).float() for name, one in voices.items()}


def _batches(trainer: Host, loader: Any) -> Iterator[Any]:
    """The loader's batches, with a progress bar; for text only batches with about `TEXT_ROWS` rows over all ranks."""
    args, limit = trainer.args, None
    if trainer.task.vocabulary:
        limit = math.ceil(TEXT_ROWS / (args.eval_batch_size * args.world_size))
    quiet = args.disable_tqdm or not trainer.is_world_process_zero()
    for number, batch in enumerate(tqdm(loader, desc="Evaluating the teacher", disable=quiet, leave=False), 1):
        yield batch
        if number == limit:
            if isinstance(loader, DataLoaderStateMixin):
                loader.end()
            return


def _warn_near_chance(scores: dict[str, float], counts: Tensor) -> None:
    """Warn if the accuracy is not above 1/C (one-sided test, 1 %), or below that of always predicting the top class.

    counts [C]: number of items of each class.
    """
    total, classes = int(counts.sum()), len(counts)
    if total < ENOUGH:
        return
    frequent, chance = int(counts.max()) / total, 1 / classes
    bound = chance + QUANTILE * math.sqrt(chance * (1 - chance) / total)
    for name, accuracy in scores.items():
        if accuracy > bound and (accuracy >= frequent or frequent == 1):
            continue
        logger.warning(
            "%s is %.4f on the evaluation set: no better than chance (1 in %d classes is %.4f; the most frequent "
            "one has %.4f of the rows). Check the teacher's weights and architecture, the preparation of its "
            "inputs, and the order of its classes. evaluate_teacher=False disables this check.",
            name, accuracy, classes, chance, frequent,
        )  # fmt: skip
