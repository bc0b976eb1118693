"""Memory and time of distilling segmentation: pixels in strips, all at once, and in a loop without hfkd.

    OMP_NUM_THREADS=1 python benchmarks/segmentation_step.py

First the loss alone, on random logits as two networks return them: additional memory and time, forward and backward.
Then whole steps of two SegFormers on random images, with DistillationTrainer and a bare loop, alternately. All rows of
a table compute the same loss, or the run stops: cross-entropy, KL at T = 4 and, in the rows "EA-KD", the entropy weight
of each pixel. A tenth of the pixels have no label. On a CPU, memory is measured in separate processes in which glibc
returns freed blocks of 4 MiB and more immediately, and time is processor time, which hardly depends on other processes:
use one thread. The fastest of several runs counts.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fresh_process import DEVICE, in_fresh_processes, peak
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from turns import Clock, in_child, now, on_one_gpu, ratio, table, take_turns, write

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.strips import StripLoss
from hfkd.tasks.semantic_segmentation import SemanticSegmentation
from hfkd.utils.cpu_memory import keep_freed_memory

TEMPERATURE, UNLABELLED = 4.0, 255
BARE, WHOLE, STRIPS = "bare loop", "hfkd, all at once", "hfkd, strips"
METHODS = {"KD": "uniform", "EA-KD": "entropy(level='item')"}
WARM_UP = 2


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="height and width of the labels")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--stride", type=int, default=4, help="the maps are so many times smaller than the labels")
    parser.add_argument("--repeats", type=int, default=3, help="of the loss alone, in each process; the fastest counts")
    parser.add_argument("--step_size", type=int, default=256, help="height and width of the images of a whole step")
    parser.add_argument("--step_batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help=f"of a turn; the first {WARM_UP} are not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="small maps and images, one round")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the child process: one case as JSON
    flags = parser.parse_args()
    if flags.quick:
        flags.size, flags.batch_size, flags.repeats = 128, 2, 1
        flags.step_size, flags.step_batch_size, flags.steps, flags.rounds = 64, 2, 4, 1
    return flags


def bare_loss(student: Tensor, teacher: Tensor, labels: Tensor, method: str) -> Tensor:
    """The direct implementation: logits at the labels' size, and each operation on all pixels."""
    z, t = (F.interpolate(x, labels.shape[-2:], mode="bilinear", align_corners=False) for x in (student, teacher))
    log_p, log_q = (torch.log_softmax(x / TEMPERATURE, 1) for x in (t, z))
    losses = (log_p.exp() * (log_p - log_q)).sum(1)
    if method == "EA-KD":
        with torch.no_grad():
            of_student, of_teacher = (entropy(x) for x in (z, t))
            weight = of_teacher * (1 + of_student / math.log(z.shape[1])) / 2
        losses = weight * losses
    ce = F.cross_entropy(z, labels, ignore_index=UNLABELLED)
    return ce + TEMPERATURE**2 * losses[labels != UNLABELLED].mean()


def entropy(logits: Tensor) -> Tensor:
    log_p = torch.log_softmax(logits / 3.0, 1)
    return -(log_p.exp() * log_p).sum(1)


def loss_function(way: str, method: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if way == BARE:
        return partial(bare_loss, method=method)
    task = SemanticSegmentation()
    loss = DistillationLoss(temperature=TEMPERATURE, weighting=METHODS[method], ce_weight=1.0, kd_weight=1.0)
    if way == WHOLE:
        return lambda student, teacher, labels: loss(task.items({"labels": labels}, student, teacher))[0]
    strips = StripLoss(loss)
    return lambda student, teacher, labels: strips(task.map_items({"labels": labels}, student, teacher))[0]


def masks(batch: int, size: int, classes: int) -> Tensor:
    labels = torch.randint(classes, (batch, size, size))
    return labels.masked_fill(torch.rand(labels.shape) < 0.1, UNLABELLED)


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Extra bytes and seconds of one loss and its gradient, and the loss."""
    if case["keep_memory"]:
        keep_freed_memory()
    torch.manual_seed(0)
    side = case["size"] // case["stride"]
    shape = (case["batch_size"], case["classes"], side, side)
    student, teacher = (3 * torch.randn(shape, device=DEVICE) for _ in range(2))
    labels = masks(case["batch_size"], case["size"], case["classes"]).to(DEVICE)
    value_of, seconds, values = loss_function(case["way"], case["method"]), [], []
    student.requires_grad_()
    before = peak()
    for _ in range(case["repeats"]):
        start = now()
        value = value_of(student, teacher, labels)
        value.backward()
        values.append(value.item())
        seconds.append(now() - start)
        student.grad = None
    return {"bytes": peak() - before, "seconds": min(seconds), "value": values[0]}


def losses_alone(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of each variant, and their ratios to the whole loss and to the bare loop."""
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        shared = {name: getattr(flags, name) for name in ("size", "classes", "batch_size", "stride", "repeats")}
        shared["keep_memory"] = True
        found = {
            way: in_fresh_processes(__file__, shared | {"way": way, "method": method}, flags.rounds)
            for way in (BARE, WHOLE, STRIPS)
        }
        for way, result in found.items():
            if not math.isclose(result["value"], found[BARE]["value"], rel_tol=1e-4):
                raise SystemExit(f"{way}, {method}: the loss is {result['value']}, and {found[BARE]['value']} bare")
            memory = result["bytes"] / found[WHOLE]["bytes"]
            rows.append(
                {"way": way, "method": method}
                | result
                | {"memory_ratio": memory, "time_ratio": result["seconds"] / found[BARE]["seconds"]}
            )
    return rows


# ---- whole steps ----------------------------------------------------------------------------------------------------


class Images(Dataset):
    """A few random images with masks, repeated."""

    def __init__(self, flags: argparse.Namespace) -> None:
        g = torch.Generator().manual_seed(0)
        size, self.count = flags.step_size, flags.step_batch_size * flags.steps
        self.images, self.masks = torch.randn(8, 3, size, size, generator=g), masks(8, size, flags.classes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[i % 8], "labels": self.masks[i % 8]}


def segformer(classes: int, sizes: Sequence[int], depths: Sequence[int]) -> SegformerForSemanticSegmentation:
    """By default with the width and depth of B0: 3.7 M parameters."""
    return SegformerForSemanticSegmentation(
        SegformerConfig(hidden_sizes=list(sizes), depths=list(depths), num_labels=classes)
    )


def networks(classes: int) -> tuple[SegformerForSemanticSegmentation, SegformerForSemanticSegmentation]:
    torch.manual_seed(0)
    return segformer(classes, (16, 32, 64, 128), (1, 1, 1, 1)), segformer(classes, (32, 64, 160, 256), (2, 2, 2, 2))


def trainer_seconds(flags: argparse.Namespace, method: str) -> list[float]:
    student, teacher = networks(flags.classes)
    clock = Clock(flags.steps, WARM_UP, cpu_time=True)
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationArguments(
            folder, per_device_train_batch_size=flags.step_batch_size, max_steps=flags.steps, ce_weight=1.0,
            kd_weight=1.0, temperature=TEMPERATURE, weighting=METHODS[method], evaluate_teacher=False, bf16=False,
            max_grad_norm=0.0, learning_rate=1e-4, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        data = {"train_dataset": Images(flags), "callbacks": [clock]}
        DistillationTrainer(student, teacher, on_one_gpu(args), **data).train()
    return clock.seconds


def bare_seconds(flags: argparse.Namespace, method: str) -> list[float]:
    keep_freed_memory()  # as hfkd's process does
    student, teacher = (network.to(DEVICE) for network in networks(flags.classes))
    student.train()
    teacher.eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    clock = Clock(flags.steps, WARM_UP, cpu_time=True)
    for batch in DataLoader(Images(flags), flags.step_batch_size, shuffle=True, collate_fn=default_collate):
        images, labels = (batch[name].to(DEVICE) for name in ("pixel_values", "labels"))
        with torch.no_grad():
            taught = teacher(pixel_values=images).logits
        bare_loss(student(pixel_values=images).logits, taught, labels, method).backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
    return clock.seconds


def main() -> None:
    flags = parse_args()
    if flags.one:
        print(json.dumps(measure(json.loads(flags.one))))
        return
    rows = losses_alone(flags)
    header = ["loss alone", "extra memory, MB", "of all at once", "s", "bare loop = 1"]
    shown = [
        [f"{row['method']}, {row['way']}", f"{row['bytes'] / 1e6:.0f}", f"{row['memory_ratio']:.3f}",
         f"{row['seconds']:.2f}", f"{row['time_ratio']:.2f}"]
        for row in rows
    ]  # fmt: skip
    print(table(header, shown), flush=True)
    times: dict[str, list[float]] = {}
    for method in METHODS:
        loops = {f"{method}, {BARE}": partial(bare_seconds, flags, method)}
        loops[f"{method}, {STRIPS}"] = partial(trainer_seconds, flags, method)
        times |= take_turns({name: partial(in_child, loop) for name, loop in loops.items()}, flags.rounds)
    beside = {name: ratio(times, name, f"{name.partition(', ')[0]}, {BARE}") for name in times}
    steps = [[name, f"{min(turns):.2f}", f"{beside[name]:.2f}"] for name, turns in times.items()]
    print("\n" + table(["whole step", "s", "bare loop = 1"], steps))
    write(flags.json, losses=rows, seconds=times, flags=vars(flags))


if __name__ == "__main__":
    main()
