"""What a loss costs: operations and time of each objective, weighting and temperature beside plain KD.

    python benchmarks/loss_overhead.py --json loss_overhead.json

Operations are those of loss and backward, views apart: on a GPU each is a launch. Times are ratios to KD's, each method
taking its turn in every round, so that a busy machine slows all: of the loss alone with its backward, and of a step of
ResNet-20 with a live WRN-16-2 (forward of both, loss, backward, SGD). A step's noise exceeds what a loss costs; the
last column is the step's ratio as computed from the loss alone, (KD step + loss - KD loss) / KD step.
Images and weights are random: the time does not depend on them. Two views are twice the images for both networks.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from operations import Operations

from hfkd.items import image_items
from hfkd.loss import DistillationLoss
from hfkd.models import image_classifier
from hfkd.temperatures import Energy

ENERGY = Energy(thresholds=(-21.0, -19.5))  # no scan here: any thresholds cost the same
METHODS: dict[str, tuple[dict[str, Any], int]] = {  # slots, views
    "KD": ({}, 1),
    "Energy KD": ({"temperature": ENERGY}, 1),
    "EA-KD": ({"weighting": "entropy"}, 1),
    "Energy KD + EA-KD": ({"temperature": ENERGY, "weighting": "entropy"}, 1),
    "KD+LS": ({"objective": "standardized", "temperature": 2.0}, 1),
    "DKD": ({"objective": "dkd"}, 1),
    "EA-DKD": ({"objective": "dkd", "weighting": "entropy"}, 1),
    "CTKD": ({"temperature": "learned"}, 1),
    "CTKD, instance-wise": ({"temperature": "learned(instance=True)"}, 1),
    "DIST": ({"objective": "dist"}, 1),
    "NKD": ({"objective": "nkd"}, 1),
    "MLD, one view": ({"objective": "mld"}, 1),
    "MLD released, one view": ({"objective": "mld(variant='released')"}, 1),
    "MLD, two views": ({"objective": "mld"}, 2),
    "MLD released, two views": ({"objective": "mld(variant='released')"}, 2),
}


@dataclass
class Case:
    """One method's loss and its inputs."""

    loss: DistillationLoss
    views: int
    labels: torch.Tensor
    student: torch.Tensor
    teacher: torch.Tensor

    def loss_alone(self) -> None:
        self.student.grad = None
        self.value(self.student, self.teacher).backward()

    def value(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return self.loss(image_items(student, teacher, self.labels))[0]


class Step:
    """A training step of the two networks with any loss."""

    def __init__(self, batch_size: int, classes: int, device: torch.device) -> None:
        self.student = image_classifier("cifar_resnet20", classes).to(device)
        self.teacher = image_classifier("cifar_wrn_16_2", classes).to(device).eval()
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.01, momentum=0.9)
        self.images = torch.randn(2 * batch_size, 3, 32, 32, device=device)

    def __call__(self, case: Case) -> None:
        images = self.images[: case.views * len(case.labels)]
        with torch.no_grad():
            taught = self.teacher(images).logits
        self.optimizer.zero_grad()
        case.value(self.student(images).logits, taught).backward()
        self.optimizer.step()


def build(batch_size: int, classes: int, device: torch.device) -> dict[str, Case]:
    def case(slots: dict[str, Any], views: int) -> Case:
        loss = DistillationLoss(**slots).to(device)
        student, teacher = 4 * torch.randn(2, views * batch_size, classes, device=device)
        labels = torch.randint(classes, (batch_size,), device=device)
        return Case(loss, views, labels, student.requires_grad_(), teacher)

    return {name: case(*method) for name, method in METHODS.items()}


def in_turns(runs: dict[str, Callable[[], None]], rounds: int, repeats: int, device: torch.device) -> dict[str, list]:
    """Seconds a run, one figure a round; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = now(device)
            for _ in range(repeats):
                run()
            if number:
                seconds[name].append((now(device) - start) / repeats)
    return seconds


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def ratio(times: dict[str, list[float]], name: str) -> float:
    """The median over the rounds of a method's time by KD's in the same round."""
    return statistics.median(mine / kd for mine, kd in zip(times[name], times["KD"], strict=True))


def count(case: Case) -> tuple[int, int]:
    """Operations of the whole loss, and of the objective with its relations alone, forward and backward."""
    with Operations() as whole:
        case.loss_alone()
    items = image_items(case.student, case.teacher, case.labels)
    t = case.loss.temperature(items).detach()
    with Operations() as alone:
        values, relations = case.loss.objective(items, t).sum(), case.loss.objective.relations(items, t)
        (values if relations is None else values + relations.sum()).backward()
    return whole.total, alone.total


def table(
    operations: dict[str, tuple[int, int]], alone: dict[str, list[float]], steps: dict[str, list[float]]
) -> list[list[str]]:
    loss = {name: statistics.median(values) for name, values in alone.items()}
    step = statistics.median(steps["KD"])
    rows = [
        ["loss", "operations", "of the objective", "ms", "time by KD's", "step by KD's", "computed"],
        ["---"] + ["---:"] * 6,
    ]
    for name, (_, views) in METHODS.items():
        computed = f"{1 + (loss[name] - loss['KD']) / step:.3f}" if views == 1 else ""
        figures = [f"{1000 * loss[name]:.2f}", f"{ratio(alone, name):.2f}", f"{ratio(steps, name):.3f}", computed]
        rows.append([name, *map(str, operations[name]), *figures])
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each method (default 15)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="one round: does it run?")
    parser.add_argument("--json", help="write all times to this file")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    device, rounds = torch.device(chosen.device), 1 if chosen.quick else chosen.rounds
    torch.manual_seed(0)
    cases = build(chosen.batch_size, chosen.num_classes, device)
    step = Step(chosen.batch_size, chosen.num_classes, device)
    operations = {name: count(case) for name, case in cases.items()}
    alone = in_turns({name: case.loss_alone for name, case in cases.items()}, rounds, 2 if chosen.quick else 50, device)
    steps = in_turns({name: lambda case=case: step(case) for name, case in cases.items()}, rounds, 1, device)
    for row in table(operations, alone, steps):
        print("| " + " | ".join(row) + " |")
    if chosen.json:
        with open(chosen.json, "w") as file:
            record = {"operations": operations, "loss_seconds": alone, "step_seconds": steps}
            json.dump(vars(chosen) | record | {"threads": torch.get_num_threads()}, file)


if __name__ == "__main__":
    main()
