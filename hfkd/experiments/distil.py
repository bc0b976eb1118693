"""A run that trains on images, from a recipe's flags to results.json."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed

from hfkd.arguments import DistillationArguments
from hfkd.data import ImageDataArguments, label_names, num_labels
from hfkd.evaluation.metrics import item_accuracy, topk_predictions
from hfkd.experiments.classifier_run import run_classifier
from hfkd.experiments.peers import save_peers
from hfkd.models import (
    NetworkArguments,
    Peers,
    image_classifier,
    image_teacher,
    image_teachers,
    resized_spec,
    with_projector,
)
from hfkd.models.label_names import label_names_of, order_of
from hfkd.teachers import FrozenTeacher
from hfkd.trainer import DistillationTrainer

Build = Callable[[int, list[str] | None], tuple[nn.Module, Any]]


def image_trainer(build: Build, data: ImageDataArguments, args: DistillationArguments) -> DistillationTrainer:
    """The trainer for the student and the teacher (or None) that `build(num_labels, label_names)` returns.

    The seed is set before they are created, so that runs in one process do not influence each other.
    """
    with args.main_process_first(desc="decoding the images"):
        train, test = data.load(seed=args.seed)
    classes, names = num_labels(train), label_names(train)
    set_seed(args.seed)
    student, teacher = build(classes, names)
    return DistillationTrainer(
        student,
        teacher,
        args,
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=item_accuracy,
        preprocess_logits_for_metrics=topk_predictions,
    )


def teachers_of(networks: NetworkArguments, classes: int) -> nn.Module | Sequence[nn.Module]:
    """The teacher or teachers, with their flags, for data with so many classes."""
    chosen, size = networks.teacher_classes, networks.teacher_image_size
    made = image_teachers(networks.teacher_name, classes if chosen is None else None, networks.teacher_checkpoint)
    if chosen is None and size is None:
        return made
    teachers = made if isinstance(made, list) else [made]
    frozen = [FrozenTeacher(one, wanted=resized_spec(one, size), classes=chosen).unfreeze() for one in teachers]
    return frozen if len(frozen) > 1 else frozen[0]


def network_to_evaluate(name: str, classes: int, checkpoint: str | None, names: list[str] | None) -> nn.Module:
    """A trained classifier whose logits are in the data's order of classes.

    Raises ValueError for random weights, and if the network names other classes than the data, or in another order.
    """
    network = image_teacher(name, classes, checkpoint, names)
    own = label_names_of(network)
    if own is not None and names is not None and order_of(own, names, name, "the data") is not None:
        raise ValueError(
            f"{name} has the data's classes in another order (its class 0 is {own[0]!r}, that of the data "
            f"{names[0]!r}): use `hfkd analyse`, which matches classes by name, or correct config.id2label if "
            "the names are wrong"
        )
    return network


def distil_images(
    networks: NetworkArguments,
    data: ImageDataArguments,
    args: DistillationArguments,
    page: bool = True,
    assistants: Sequence[str] = (),
) -> dict[str, Any]:
    """Load data and networks, distil, and write the student and its results to `args.output_dir`; see `run_classifier`.

    With `mutual_learning` teacher and student are peers, and results.json is that of the student
    (`experiments/peers.py`). `assistants`: networks between the first teacher and the student, for results and model
    card. Call it on every rank.
    """

    def build(classes: int, names: list[str] | None) -> tuple[nn.Module, Any]:
        if networks.mutual_learning:
            peers = (networks.student_name, *networks.teacher_name)
            return Peers([image_classifier(name, classes, label_names=names) for name in peers]), None
        teacher = teachers_of(networks, classes)
        student = image_classifier(networks.student_name, classes, networks.student_checkpoint, names)
        if networks.student_projector is not None:
            student = with_projector(student, networks.student_projector)
        return student, teacher

    trainer = image_trainer(build, data, args)
    chain = {"assistants": [Path(name).name for name in assistants]} if assistants else {}
    more: dict[str, Any] = {"trained": partial(save_peers, trainer)} if networks.mutual_learning else {}
    return run_classifier(trainer, vars(networks) | vars(data) | trainer.settings | chain, page=page, **more)
