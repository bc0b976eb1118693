"""Where the time of a DistillationTrainer step goes, for each input pipeline and teacher.

    python benchmarks/profile_step.py --dataset_name uoft-cs/cifar100 --teacher_checkpoint wrn_16_2.pth

Shares of a step's time: fetching the batch, the teacher, the student's forward, the loss, backward, the optimizer, and
the rest, which is Trainer's. Rows: images fetched row by row; held as tensors (`resident`); and with a warm cache.
"""

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from image_step import THRESHOLDS, BenchmarkArguments, teacher_network, training_arguments
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback
from turns import WARM_UP, Clock, table, wall, write

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data import ImageDataArguments, num_labels
from hfkd.losses.temperatures import Energy
from hfkd.models import image_classifier
from hfkd.utils.parsing import parse

PARTS = ("data", "teacher", "student forward", "loss", "backward", "optimizer")


class Profiled(DistillationTrainer):
    """Measures the time of its parts; on a GPU each part is synchronized."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.parts: dict[str, list[float]] = defaultdict(list)
        self.step.student_output = self.timed("student forward", self.step.student_output)  # type: ignore[method-assign]
        self.step.loss.forward = self.timed("loss", self.step.loss.forward)  # type: ignore[method-assign]
        self.accelerator.backward = self.timed("backward", self.accelerator.backward)  # type: ignore[method-assign]
        self.step.of_teacher = self.timed("teacher", self.step.of_teacher)  # type: ignore[method-assign]
        self.get_batch_samples = self.timed("data", self.get_batch_samples)  # type: ignore[method-assign]

    def create_optimizer(self, *arguments: Any, **keywords: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*arguments, **keywords)
        optimizer.step = self.timed("optimizer", optimizer.step)  # type: ignore[method-assign]
        return optimizer

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*arguments: Any, **keywords: Any) -> Any:
            start = wall()
            result = call(*arguments, **keywords)
            self.parts[name].append(wall() - start)
            return result

        return timed_call


def shares(trainer: Profiled, clock: Clock) -> dict[str, float]:
    """Median milliseconds of a step's parts."""
    parts = {name: 1000 * statistics.median(trainer.parts[name][WARM_UP:]) for name in PARTS}
    step = 1000 * statistics.median(clock.seconds)
    return parts | {"Trainer": step - sum(parts.values()), "step": step}


def main() -> None:
    benchmark, data, given = parse((BenchmarkArguments, ImageDataArguments, DistillationArguments), description=__doc__)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        given.output_dir = folder

        def run(held: bool, cache: str | None = None) -> dict[str, float]:
            train, _ = replace(data, resident=held).load()
            set_seed(0)
            classes = num_labels(train)
            teacher = teacher_network(benchmark.teacher_name, classes, benchmark.teacher_checkpoint)
            args = training_arguments(given, benchmark.steps, benchmark.batch_size)
            clock = Clock(benchmark.steps)
            args.teacher_cache_dir = cache
            trainer = Profiled(
                image_classifier(benchmark.student_name, classes),
                teacher,
                args,
                train_dataset=train,
                temperature=Energy(thresholds=THRESHOLDS),
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            return shares(trainer, clock)

        logits = f"{folder}/logits"
        run(True, logits)  # fills the cache
        ways = {"row by row, live": (False, None), "resident, live": (True, None), "resident, cached": (True, logits)}
        for _ in range(benchmark.rounds):
            for way, (held, cache) in ways.items():
                turn = run(held, cache)
                if way not in results or turn["step"] < results[way]["step"]:
                    results[way] = turn
    columns = (*PARTS, "Trainer")
    rows = [
        (way, f"{r['step']:.1f}", *(f"{r[c]:.1f} ({r[c] / r['step']:.1%})" for c in columns))
        for way, r in results.items()
    ]
    print(table(("ms (share of the step)", "step", *columns), rows))
    write(benchmark.json, results=results, settings=vars(benchmark))


if __name__ == "__main__":
    main()
