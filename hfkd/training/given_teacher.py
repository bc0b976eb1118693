"""The teacher that a trainer makes of `teacher=`: networks, frozen ones, lists and dicts of both, or a stored one."""

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from torch import nn

from hfkd.arguments import DistillationArguments
from hfkd.losses.distillation import DistillationLoss
from hfkd.teachers import CachedTeacher, FrozenTeacher, Teacher, TeacherByRow, TeacherEnsemble
from hfkd.training.validation.normalisation import Received, warn_of_normalisation


def teacher_networks(teacher: Any) -> list[nn.Module]:
    """The networks in `teacher=`: one, several, or none."""
    several = teacher if isinstance(teacher, (list, tuple)) else [teacher]
    found = [one.networks if isinstance(one, Teacher) else (one,) for one in several if isinstance(one, nn.Module)]
    return [network for networks in found for network in networks]


def by_row(teacher: Any) -> Any:
    """`teacher=`, where a dict of teachers is that of each row."""
    return TeacherByRow(teacher).unfreeze() if isinstance(teacher, Mapping) else teacher


def as_teacher(given: Any, inputs: Received) -> Teacher:
    """Wrap `teacher=`, with the normalisation of the training images unless it already has one.

    A list of teachers becomes a `TeacherEnsemble`. The caller's networks are frozen only while they are used. Warns if
    the normalisation is known from the student's config only and differs from the teacher's.
    """
    if isinstance(given, Teacher) and not given.members:  # stored
        return given
    listed = isinstance(given, (list, tuple))
    members = given if listed else given.members if isinstance(given, Teacher) else [given]
    several = listed or len(members) > 1
    if several:
        _refuse_own_combination(*(() if type(given) is TeacherByRow else [given]), *members)
    live = [_frozen(one, inputs) for one in members]
    if not several:
        return live[0]
    return (given.made_of(live) if isinstance(given, TeacherEnsemble) else TeacherEnsemble(live)).unfreeze()


def _refuse_own_combination(*teachers: Any) -> None:
    """Raise ValueError for subclasses in an ensemble, which combines its networks' logits and would not call them."""
    for one in teachers:
        if isinstance(one, FrozenTeacher) and type(one) not in (FrozenTeacher, TeacherEnsemble):
            raise ValueError(
                f"several teachers are combined by hfkd, and what {type(one).__name__} computes itself would have no "
                "effect: pass one nn.Module that runs the networks (a FrozenTeacher each, where their inputs are "
                "normalised differently) and returns the combined logits"
            )


def _frozen(teacher: Any, inputs: Received) -> FrozenTeacher:
    if isinstance(teacher, FrozenTeacher):
        _refuse_own_order(teacher)
        if teacher.received is not None:
            return teacher.for_batches(teacher.received)
        live = teacher.for_batches(inputs.spec)
    else:
        live = FrozenTeacher(teacher, inputs.spec).unfreeze()
    if not inputs.certain:
        warn_of_normalisation(inputs.spec, live.wanted)
    return live


def _refuse_own_order(teacher: FrozenTeacher) -> None:
    """Raise ValueError for an order of classes that the caller has set, and that would be lost."""
    order = None if teacher.order is None else teacher.order.tolist()
    if order is not None and not teacher.aligned and order != list(teacher.classes or ()):
        raise ValueError(
            f"the teacher's classes were put into another order by reorder ({order[:4]}, ...), which a trainer says "
            "anew for its data: give the order as FrozenTeacher(teacher, classes=[...]), or the classes' names as "
            "label_names"
        )


def cached_teacher(
    teacher: Any, dataset: Any, loss: DistillationLoss, args: DistillationArguments, accelerator: Accelerator
) -> CachedTeacher | None:
    """The cached teacher for the training images with `teacher_cache_dir`, else None. ValueError if unsuitable."""
    if not args.teacher_cache_dir or teacher is None or not teacher.networks or not loss.kd_weight:
        return None
    return CachedTeacher(teacher, dataset, args.teacher_cache_dir, accelerator, args.teacher_cache_on_device)
