"""The cost of each distillation loss compared with plain KD: operations, time of the loss, time of a whole step.

    python benchmarks/loss_overhead.py

- ops: computing ATen operations, forward and backward. "objective": only temperature, objective and relations; "loss":
DistillationLoss as in a step, with its logged parts, with ce_weight 0 and with 0.1.
- loss: forward and backward of DistillationLoss on given logits.
- step: hfkd's step on one fixed batch of random images: teacher, student, loss, backward and SGD, in the trainer's
  precision and memory format; without input pipeline and Trainer, which cost the same for all methods.
- step, by the loss: (KD's step + additional time of the loss) / KD's step, if steps are too noisy to show a difference.

The methods run alternately. A ratio is the median, over the rounds, of the method's time over KD's in the same round;
"KD, again" shows how far such a ratio is from 1 by chance. Two views are twice the images. On a CPU the time is
processor time, which hardly depends on other processes; on a GPU each turn starts and ends with a synchronization, so
use long turns (--steps 50).
"""

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from operations import Operations
from torch import Tensor
from transformers import set_seed
from turns import now, table, write

from hfkd import DistillationArguments
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import Items, image_items
from hfkd.losses.temperatures import Energy
from hfkd.models import image_classifier
from hfkd.models.calling import Call
from hfkd.tasks.image_classification import ImageClassification
from hfkd.teachers import FrozenTeacher, place
from hfkd.training.forward.dense import DenseForward
from hfkd.utils.flags import flag
from hfkd.utils.parsing import parse

ENERGY = Energy(thresholds=(-21.0, -19.5))  # no scan here: any thresholds cost the same
BOTH = "Energy KD + EA-KD"
# The slots, and the number of views per image.
METHODS: dict[str, tuple[dict[str, Any], int]] = {
    "KD": ({}, 1),
    "KD, again": ({}, 1),
    "Energy KD": ({"temperature": ENERGY}, 1),
    "EA-KD": ({"weighting": "entropy"}, 1),
    BOTH: ({"temperature": ENERGY, "weighting": "entropy"}, 1),
    "KD, standardised": ({"objective": "standardized", "temperature": 2.0}, 1),
    "DKD": ({"objective": "dkd"}, 1),
    "EA-DKD": ({"objective": "dkd", "weighting": "entropy"}, 1),
    "DIST": ({"objective": "dist"}, 1),
    "NKD": ({"objective": "nkd"}, 1),
    "CTKD": ({"temperature": "learned"}, 1),
    "CTKD, instance-wise": ({"temperature": "learned(instance=True)"}, 1),
    "MLD": ({"objective": "mld"}, 1),
    "MLD, released": ({"objective": "mld(variant='released')"}, 1),
    "MLD, two views": ({"objective": "mld"}, 2),
    "MLD, released, two views": ({"objective": "mld(variant='released')"}, 2),
}
MOST_OPS, SLOWEST = 100, 1.01  # targets: of every MLD objective; of Energy KD + EA-KD's step beside KD's


@dataclass
class BenchmarkArguments:
    teacher_name: str = flag("cifar_wrn_16_2", "Teacher, with random weights.")
    student_name: str = flag("cifar_resnet20", "Student.")
    batch_size: int = flag(64, "Images of a step.")
    num_classes: int = flag(100, "Classes.")
    rounds: int = flag(11, "Turns of each method.")
    steps: int = flag(1, "Whole steps of a turn.")
    losses: int = flag(50, "Losses of a turn, without networks.")
    threads: int = flag(1, "CPU threads; one gives stable results on a shared machine.")
    json: str | None = flag(None, "Write the figures to this file.")
    quick: bool = flag(False, "Three turns of each method.")

    def __post_init__(self) -> None:
        torch.set_num_threads(self.threads)
        if self.quick:
            self.rounds, self.losses = 3, 10


@dataclass
class Method:
    """One method's loss, with given logits and labels, and with its own networks."""

    benchmark: BenchmarkArguments
    device: torch.device
    slots: dict[str, Any]
    views: int

    def __post_init__(self) -> None:
        count, classes = self.benchmark.batch_size, self.benchmark.num_classes
        set_seed(0)
        self.labels = torch.randint(classes, (count,), device=self.device)
        self.student, self.teacher = 4 * torch.randn(2, self.views * count, classes, device=self.device)
        self.num_items = torch.tensor(count, device=self.device)  # as Trainer counts them
        self.loss = self.build()

    def build(self, **weights: float) -> DistillationLoss:
        loss = DistillationLoss(**self.slots, **weights).to(self.device)
        loss(self.items())  # initializes lazy slots
        return loss

    def items(self) -> Items:
        return image_items(self.student.detach().requires_grad_(), self.teacher, self.labels)

    def operations(self) -> dict[str, int]:
        calls = {
            "objective": partial(self.objective, self.build()),
            "loss without CE": partial(self.forward_backward, self.build(ce_weight=0.0)),
            "loss": partial(self.forward_backward, self.build()),
        }
        counts = {}
        for name, call in calls.items():
            with Operations() as operations:
                call()
            counts[name] = operations.total
        return counts

    def objective(self, loss: DistillationLoss) -> None:
        """Without the weight, which is computed separately and multiplied."""
        items, objective = self.items(), loss.objective
        temperature = loss.temperature(items)
        values, relations = objective(items, temperature).sum(), objective.relations(items, temperature)
        (values if relations is None else values + relations.sum()).backward()

    def forward_backward(self, loss: DistillationLoss) -> None:
        loss(self.items(), self.num_items)[0].backward()

    def step(self, given: DistillationArguments) -> Callable[[], None]:
        """A whole training step, as the trainer does it."""
        set_seed(0)
        accelerator = Accelerator(cpu=given.use_cpu, mixed_precision="bf16" if given.bf16 else "no")
        student, teacher = (
            image_classifier(name, self.benchmark.num_classes)
            for name in (self.benchmark.student_name, self.benchmark.teacher_name)
        )
        images = torch.randn(self.views * len(self.labels), 3, 32, 32, device=self.device)
        step = DenseForward(Call.of(student), ImageClassification(), self.loss)
        if given.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
            for network in (student, teacher):
                network.to(memory_format=torch.channels_last)
        student, placed = accelerator.prepare_model(student.train()), place(FrozenTeacher(teacher), accelerator)
        trained = [*student.parameters(), *self.loss.parameters()]
        optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=5e-4)
        inputs: dict[str, Tensor] = {"pixel_values": images, "labels": self.labels}

        def run() -> None:
            step(student, placed, inputs, self.num_items, 0.0)[0].backward()
            optimizer.step()
            optimizer.zero_grad()

        return run


def take_turns(calls: dict[str, Callable[[], None]], rounds: int, times: int) -> dict[str, list[float]]:
    """Seconds of one call in each round, after an uncounted round.

    The order differs between rounds, so that no method always follows the same other one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    draw = random.Random(0)
    for _ in range(rounds + 1):
        for name, call in draw.sample(list(calls.items()), len(calls)):
            start = now()
            for _ in range(times):
                call()
            seconds[name].append((now() - start) / times)
    return {name: turns[1:] for name, turns in seconds.items()}


def beside_kd(seconds: dict[str, list[float]], name: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[name], seconds["KD"], strict=True))


def figures(
    operations: dict[str, dict[str, int]], losses: dict[str, list[float]], steps: dict[str, list[float]]
) -> dict[str, dict[str, Any]]:
    loss, step = ({name: statistics.median(turns) for name, turns in s.items()} for s in (losses, steps))
    return {
        name: {
            "operations": operations[name],
            "loss": loss[name],
            "loss_beside_kd": beside_kd(losses, name),
            "step": step[name],
            "step_beside_kd": beside_kd(steps, name),
            "by_the_loss": 1 + (loss[name] - loss["KD"]) / step["KD"] if METHODS[name][1] == 1 else None,
        }
        for name in METHODS
    }


def row(name: str, result: dict[str, Any]) -> tuple[Any, ...]:
    loss, step = (f"{1000 * result[part]:.{digits}f}" for part, digits in (("loss", 2), ("step", 1)))
    beside = (f"{result['loss_beside_kd']:.2f}", f"{result['step_beside_kd']:.3f}")
    by_the_loss = f"{result['by_the_loss']:.4f}" if result["by_the_loss"] else "-"
    return name, *result["operations"].values(), loss, beside[0], step, beside[1], by_the_loss


def main() -> None:
    benchmark, given = parse((BenchmarkArguments, DistillationArguments), description=__doc__)
    methods = {name: Method(benchmark, given.device, *method) for name, method in METHODS.items()}
    operations = {name: method.operations() for name, method in methods.items()}
    alone = {name: partial(method.forward_backward, method.loss) for name, method in methods.items()}
    losses = take_turns(alone, benchmark.rounds, benchmark.losses)
    steps = take_turns({n: m.step(given) for n, m in methods.items()}, benchmark.rounds, benchmark.steps)
    results = figures(operations, losses, steps)
    counted = (f"ops: {name}" for name in operations["KD"])
    header = ("method", *counted, "loss, ms", "× KD", "step, ms", "× KD", "step × KD, by the loss")
    print(table(header, [row(name, result) for name, result in results.items()]))
    most = max(counts["objective"] for name, counts in operations.items() if name.startswith("MLD"))
    both = results[BOTH]
    print(
        f"\nbatch {benchmark.batch_size}, {benchmark.num_classes} classes, {given.device}, "
        f"{'bf16 autocast' if given.bf16 else 'float32'}, {benchmark.rounds} rounds\n"
        f"{BOTH}: a step takes {both['step_beside_kd']:.3f} of KD's, {both['by_the_loss']:.4f} by the loss "
        f"(target ≤ {SLOWEST}); MLD: at most {most} ops (target ≤ {MOST_OPS})"
    )
    write(benchmark.json, results=results, losses=losses, steps=steps, settings=vars(benchmark), bf16=bool(given.bf16))


if __name__ == "__main__":
    main()
