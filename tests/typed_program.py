"""A program as users write it who check types (`mypy --strict`): slots of their own, and all ways to pass them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hfkd import (
    DistillationArguments,
    DistillationLoss,
    DistillationTrainer,
    Objective,
    Requirements,
    Temperature,
    Weighting,
    register_weighting,
)
from hfkd.losses.items import Items
from hfkd.losses.logits import DKD
from hfkd.losses.weightings import Entropy
from hfkd.teachers import FrozenTeacher


@dataclass
class Absolute(Objective):
    scale: float = 1.0

    def requirements(self) -> Requirements:
        return Requirements(classes=2)

    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        return self.scale * (items.student.logits - items.teacher.logits).abs().mean(dim=-1) / temperature


class ByEnergy(Temperature):
    def __call__(self, items: Items) -> Tensor:
        return 1 + items.teacher.energy(1).abs()


class Halved(Weighting):
    def __call__(self, items: Items) -> Tensor:
        return torch.full_like(items.teacher.energy(1), 0.5)


def register() -> None:
    register_weighting("halved")(Halved)


def doubled(items: Items) -> Tensor:
    return torch.full_like(items.teacher.energy(1), 2.0)


def arguments(folder: Path) -> list[DistillationArguments]:
    given = str(folder)
    return [
        DistillationArguments(given, objective=Absolute(), temperature=2, weighting=doubled, max_steps=1),
        DistillationArguments(given, objective=[(0.5, Absolute(2.0)), DKD()], weighting=Halved(), max_steps=1),
        DistillationArguments(given, objective="kd + 2 * dkd", temperature=ByEnergy(), weighting="halved", max_steps=1),
        DistillationArguments(given, objective=(2.0, "kd"), temperature="energy(thresholds=(-9, -5))", max_steps=1),
    ]


def train(
    student: nn.Module, teacher: nn.Module, rows: torch.utils.data.Dataset[dict[str, Tensor]], folder: Path
) -> float:
    """The mean loss of a step with each of the arguments, and with slots that the trainer is given itself."""
    trainers = [
        DistillationTrainer(student, FrozenTeacher(teacher), one, train_dataset=rows) for one in arguments(folder)
    ]
    trainers.append(
        DistillationTrainer(
            model=student,
            teacher=teacher,
            args=DistillationArguments(str(folder), max_steps=1),
            objective=[(1.0, "kd"), (2, Absolute())],
            temperature=3.0,
            weighting=Entropy(),
            train_dataset=rows,
        )
    )
    losses: list[float] = [trainer.train().training_loss for trainer in trainers]
    return sum(losses) / len(losses)


loss = DistillationLoss("dkd(beta=8.0)", ByEnergy(), doubled, ce_weight=0.5)
