"""Images a second of DistillationTrainer over batch sizes, in one process and in two.

    python benchmarks/image_scaling.py --dataset_name uoft-cs/cifar100 --teacher_checkpoint wrn_16_2.pth

Each process has one CPU thread, so that two have twice the cores of one.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from image_step import THRESHOLDS, training_arguments
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback
from turns import Clock, table, write

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.arguments import parse
from hfkd.data import ImageDataArguments, num_labels
from hfkd.models import image_classifier, image_teacher
from hfkd.temperatures import Energy


@dataclass
class BenchmarkArguments:
    teacher_name: str = field(default="cifar_wrn_16_2", metadata={"help": "Teacher."})
    teacher_checkpoint: str | None = field(default=None, metadata={"help": "Its weights; random ones cost the same."})
    student_name: str = field(default="cifar_resnet20", metadata={"help": "Student."})
    batch_sizes: list[int] = field(
        default_factory=lambda: [16, 64, 256], metadata={"help": "Images of a step, over all processes."}
    )
    processes: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Numbers of processes."})
    steps: int = field(default=15, metadata={"help": "Steps of a case; the first five are not counted."})
    json: str | None = field(default=None, metadata={"help": "Write the figures to this file."})
    quick: bool = field(default=False, metadata={"help": "Batches of 16 and 64, eight steps."})
    case: str | None = field(default=None, metadata={"help": "Used by the script: one case in this process."})

    def __post_init__(self) -> None:
        if self.quick:
            self.batch_sizes, self.steps = [16, 64], 8
        self.batch_size = self.batch_sizes[0]


def measure(benchmark: BenchmarkArguments, data: ImageDataArguments, given: DistillationArguments) -> None:
    """One case, in each of its processes; the first writes the median seconds of a step."""
    train, _ = data.load()
    set_seed(0)
    classes, known = num_labels(train), benchmark.teacher_checkpoint
    name = benchmark.teacher_name
    teacher = image_teacher(name, classes, known) if known else image_classifier(name, classes)
    clock = Clock(benchmark.steps)
    trainer = DistillationTrainer(
        image_classifier(benchmark.student_name, classes),
        teacher,
        training_arguments(benchmark, given),
        train_dataset=train,
        temperature=Energy(thresholds=THRESHOLDS),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if trainer.is_world_process_zero():
        times = sorted(clock.seconds)
        Path(str(benchmark.case)).write_text(json.dumps(times[len(times) // 2]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def in_processes(processes: int, batch_size: int, folder: str) -> float:
    """Seconds of a step, measured by this script run in so many processes."""
    result = Path(folder) / f"{processes}-{batch_size}.json"
    case = ["--case", str(result), "--batch_sizes", str(batch_size // processes), "--output_dir", folder]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, __file__, *sys.argv[1:], *case]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{processes} processes, batch {batch_size}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(result.read_text())


def main() -> None:
    benchmark, data, given = parse((BenchmarkArguments, ImageDataArguments, DistillationArguments), description=__doc__)
    if benchmark.case:
        benchmark.batch_size = given_batch(sys.argv)
        return measure(benchmark, data, given)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for batch_size in benchmark.batch_sizes:
            for processes in benchmark.processes:
                seconds = in_processes(processes, batch_size, folder)
                results.append({"batch_size": batch_size, "processes": processes, "seconds": seconds})
    header = ("batch", *(f"images/s, {p} process{'es' if p > 1 else ''}" for p in benchmark.processes))
    rows = [
        (size, *(f"{size / r['seconds']:,.0f}" for r in results if r["batch_size"] == size))
        for size in benchmark.batch_sizes
    ]
    print(table(header, rows))
    write(benchmark.json, results=results, settings=vars(benchmark))
    return None


def given_batch(argv: list[str]) -> int:
    """The last --batch_sizes: --quick would put its own in place of it."""
    return int(argv[len(argv) - 1 - argv[::-1].index("--batch_sizes") + 1])


if __name__ == "__main__":
    main()
