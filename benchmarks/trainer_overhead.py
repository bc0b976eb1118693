"""What the Trainer costs: DistillationTrainer's step beside a bare PyTorch loop of the same forward and backward.

    python benchmarks/trainer_overhead.py --dataset_name uoft-cs/cifar100 --teacher_checkpoint wrn_16_2.pth

Both take turns on the same data, networks, precision and loss (Energy KD), so that a busy machine slows both; the
figure is the ratio of the median times from one step's end to the next one's.
"""

import itertools
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.arguments import parse
from hfkd.data import ImageDataArguments, num_labels
from hfkd.models import image_classifier, image_teacher
from hfkd.temperatures import Energy


@dataclass
class BenchmarkArguments:
    teacher_name: str = field(default="cifar_wrn_16_2", metadata={"help": "Teacher."})
    teacher_checkpoint: str | None = field(default=None, metadata={"help": "Its weights."})
    student_name: str = field(default="cifar_resnet20", metadata={"help": "Student."})
    rounds: int = field(default=4, metadata={"help": "Turns of each loop."})
    steps: int = field(default=40, metadata={"help": "Steps in a turn; the first five are not counted."})
    json: str | None = field(default=None, metadata={"help": "Write the figures to this file."})


SKIPPED = 5
THRESHOLDS = (-21.0, -19.5)  # no scan here: any thresholds cost the same


class StepTimes(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.ends.append(time.perf_counter())


def trainer_turn(student: Any, teacher: Any, train: Any, args: DistillationArguments) -> list[float]:
    clock = StepTimes()
    trainer = DistillationTrainer(
        student, teacher, args, train_dataset=train, temperature=Energy(thresholds=THRESHOLDS), callbacks=[clock]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return intervals(clock.ends)


def bare_turn(student: Any, teacher: Any, train: Any, args: DistillationArguments) -> list[float]:
    """The same mathematics by hand."""
    for network in (student, teacher):
        network.to(args.device, memory_format=torch.channels_last)
    loader = DataLoader(train, args.train_batch_size, shuffle=True, collate_fn=stack, drop_last=True)
    optimizer = torch.optim.SGD(student.parameters(), lr=args.learning_rate, momentum=0.9, weight_decay=5e-4)
    student.train(), teacher.eval()
    ends = []
    low, high = THRESHOLDS
    for images, labels in itertools.islice(loader, args.max_steps):
        images = images.to(args.device).contiguous(memory_format=torch.channels_last)
        labels = labels.to(args.device)
        with torch.autocast(args.device.type, torch.bfloat16, enabled=bool(args.bf16)):
            logits = student(images).logits.float()
            with torch.no_grad():
                taught = teacher(images).logits.float()
        energy = -4 * (taught / 4).logsumexp(-1)
        t = (4 + 2.0 * (energy < low) - 2.0 * (energy > high)).unsqueeze(-1)
        kl = F.kl_div((logits / t).log_softmax(-1), (taught / t).log_softmax(-1), log_target=True, reduction="none")
        loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * (t * t * kl).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ends.append(time.perf_counter())
    return intervals(ends)


def stack(rows: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([r["pixel_values"] for r in rows]), torch.stack([r["labels"] for r in rows])


def intervals(ends: list[float]) -> list[float]:
    return [b - a for a, b in itertools.pairwise(ends)][SKIPPED:]


def main() -> None:
    benchmark, data, args = parse(
        (BenchmarkArguments, ImageDataArguments, DistillationArguments), description=__doc__, defaults=[]
    )
    train, _ = data.load()
    classes = num_labels(train)
    times: dict[str, list[float]] = {"bare loop": [], "DistillationTrainer": []}
    with tempfile.TemporaryDirectory() as folder:
        options = {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.05, "weight_decay": 5e-4}
        quiet = {"save_strategy": "no", "logging_steps": 500, "disable_tqdm": True, "report_to": "none"}
        args = DistillationArguments(
            output_dir=folder,
            max_steps=benchmark.steps,
            per_device_train_batch_size=64,
            max_grad_norm=0.0,
            decay_bias_and_norm=True,
            bf16=args.bf16,
            use_cpu=args.use_cpu,
            dataloader_pin_memory=not args.use_cpu,
            **options,
            **quiet,
        )
        for _, (name, turn) in itertools.product(
            range(benchmark.rounds), {"bare loop": bare_turn, "DistillationTrainer": trainer_turn}.items()
        ):
            set_seed(0)
            teacher = image_teacher(benchmark.teacher_name, classes, benchmark.teacher_checkpoint)
            times[name] += turn(image_classifier(benchmark.student_name, classes), teacher, train, args)
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = [
        (name, f"{1000 * t:.1f}", f"{64 / t:,.0f}", f"{t / medians['bare loop']:.3f}") for name, t in medians.items()
    ]
    for row in [("loop", "ms a step", "images/s", "time ratio"), ("---",) * 4, *rows]:
        print("| " + " | ".join(row) + " |")
    if benchmark.json:
        with open(benchmark.json, "w") as file:
            json.dump({"times": times, "medians": medians, "bf16": args.bf16, "device": str(args.device)}, file)


if __name__ == "__main__":
    main()
