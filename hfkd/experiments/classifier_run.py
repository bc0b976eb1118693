"""A complete run of a classifier, whose page shows the teacher's energies and what student and teacher get right.

Rows are images or texts. N images, C classes, H height, W width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfkd.data.epochs import ImageStream, image_transform
from hfkd.data.he_da import original_images
from hfkd.data.transforms import unpack_pixels
from hfkd.data.used_columns import label_column
from hfkd.experiments.run import run_with_page
from hfkd.losses.functional import entropy
from hfkd.losses.temperatures import Energy, Fitted
from hfkd.reports.energy import class_captions
from hfkd.reports.page import distillation_sections
from hfkd.teachers import FrozenTeacher, TeacherScan
from hfkd.trainer import DistillationTrainer
from hfkd.training.validation.normalisation import receiving
from hfkd.utils.temporary_settings import setting

SHOWN = 16  # number of images with lowest and highest energy on the page
ENTROPY_TEMPERATURE = 3.0  # EA-KD's, for the entropies on the page
GROUP = 512  # number of images per energy group whose predictions are averaged


def run_classifier(
    trainer: DistillationTrainer,
    config: dict[str, Any],
    page: bool = True,
    items_name: str = "images",
    trained: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    """`run_with_page` for a classifier: its page needs another pass of teacher and student over all rows."""
    sections, shown = distillation_sections if page else None, partial(page_data, trainer)
    return run_with_page(trainer, config, sections, items_name=items_name, trained=trained, shown=shown)


def page_data(trainer: DistillationTrainer) -> dict[str, Any]:
    """Data for the page besides the curves, as far as this run has it."""
    teacher, slot = trainer.teacher, trainer.distillation_loss.temperature
    if teacher is None or isinstance(trainer.train_dataset, ImageStream):
        return {}
    # Not the trainer's last scan, which may be HE-DA's, at another temperature. An earlier scan is cached.
    wanted = {"energy_temperature": slot.energy_temperature} if isinstance(slot, Fitted) else {}
    training = trainer.scan_training_set(**wanted)
    data = {"energies": training.energy} | _energy_groups(trainer, teacher, training)
    if isinstance(slot, Energy):
        data["thresholds"] = slot.thresholds
    if trainer.eval_dataset is not None and not isinstance(trainer.eval_dataset, (dict, ImageStream)):
        data |= _correctness(trainer, teacher, trainer.eval_dataset)
    return data


def _energy_groups(trainer: DistillationTrainer, teacher: FrozenTeacher, training: TeacherScan) -> dict[str, Any]:
    """Images with lowest and highest energy, and the teacher's probabilities for a group of rows at each end."""
    dataset = original_images(trainer.train_dataset)
    transform = image_transform(dataset)
    order = training.energy.argsort()
    count = min(GROUP, len(order) // 2)
    data: dict[str, Any] = {}
    for name, rows in {"lowest": order[:count].tolist(), "highest": order.flip(0)[:count].tolist()}.items():
        shown = dataset if transform is None else dataset.with_transform(transform.clean())
        data[f"{name}_probabilities"] = _probabilities(trainer, teacher, [shown[i] for i in rows])
        if transform is not None and "pixels" in dataset.column_names:
            data[f"{name}_images"] = unpack_pixels(dataset.with_format(None)[rows[:SHOWN]]["pixels"]).numpy()
            data[f"{name}_classes"] = _classes(trainer, dataset, rows[:SHOWN], data[f"{name}_probabilities"])
    return data


def _classes(trainer: DistillationTrainer, dataset: Any, rows: list[int], probabilities: Tensor) -> list[str]:
    labels = dataset.with_format(None)[rows][label_column(dataset.column_names)]
    return class_captions(labels, probabilities, trainer.class_names)


@torch.no_grad()
def _probabilities(trainer: DistillationTrainer, teacher: FrozenTeacher, rows: list[Any]) -> Tensor:
    size = trainer.args.eval_batch_size
    batches = (trainer.data_collator(rows[start : start + size]) for start in range(0, len(rows), size))
    return torch.cat([teacher(**trainer._prepare_inputs(b)).float().softmax(-1).cpu() for b in batches])


def _correctness(trainer: DistillationTrainer, teacher: FrozenTeacher, dataset: Any) -> dict[str, Any]:
    """For each evaluation row: the teacher's entropy, and whether student and teacher are right."""
    with receiving(teacher, trainer.image_inputs, dataset):
        entropies, taught = _of_teacher(trainer, teacher, dataset)
    with setting(trainer.args, prediction_loss_only=False, eval_do_concat_batches=True):
        predicted = trainer.predict(dataset)
    ranked, labels = np.asarray(predicted.predictions), np.asarray(predicted.label_ids)
    best = ranked[:, 0] if np.issubdtype(ranked.dtype, np.integer) else ranked.argmax(-1)
    return {
        "entropy": entropies,
        "entropy_temperature": ENTROPY_TEMPERATURE,
        "student_correct": best == labels,
        "teacher_correct": taught.numpy() == labels,
    }


@torch.no_grad()
def _of_teacher(trainer: DistillationTrainer, teacher: FrozenTeacher, dataset: Any) -> tuple[Tensor, Tensor]:
    """The teacher's entropy and class of each row [N], in the precision and order of `trainer.predict`."""
    network, found = trainer.evaluated_network(teacher), []
    if network is teacher:
        network = teacher.uncompiled  # avoids compiling for another batch size
    for batch in trainer.get_test_dataloader(dataset):
        inputs = trainer.as_networks_take_it(trainer._prepare_inputs(batch), training=False)
        logits = network(**trainer.task.for_teacher(inputs))[..., : trainer.num_classes]
        both = torch.stack([entropy(logits, ENTROPY_TEMPERATURE), logits.argmax(-1).float()], dim=-1)  # [B, 2]
        found.append(trainer.accelerator.gather_for_metrics(both))
    entropies, classes = torch.cat(found).cpu().T
    return entropies, classes.long()
