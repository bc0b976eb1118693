"""Images and tokens per second over batch size, sequence length, vocabulary and processes, and the growth of time.

    python benchmarks/scaling.py --dataset_name uoft-cs/cifar100 --teacher_checkpoint wrn_16_2.pth

Images: Energy KD with a live teacher, input pipeline included. Text: EA-KD of GPT-2-shaped models with random weights
on random tokens, half of them targets. Along each axis the other sizes are fixed, as in its title. Below each table is
the exponent p of time ~ size^p: by least squares over all points, then for the last two. 1 is linear; below 1, part of
the cost does not grow with the size. Processes: each has the base's batch and one CPU thread (gloo), or its own GPU
(nccl). With n of them, the throughput can be at most n times as high. The sizes of an axis run alternately, --rounds
times; the fastest turn counts, with its median step. On a CPU with one process, seconds are processor time, which
hardly depends on other processes; otherwise wall time. Processes keep freed memory: glibc would return blocks above 32
MiB, such as the logits of a thousand tokens, and page faults would distort the curves from that size on (see
--keep_memory false).
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from growth import LINEAR, Growth, check_sizes
from scaling_steps import KINDS, ImageStep, NetworkArguments, Setting, Step, TextStep, seconds
from turns import table, take_turns, write

from hfkd import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.utils.cpu_memory import keep_freed_memory
from hfkd.utils.flags import flag
from hfkd.utils.parsing import parse

BASES = (ImageStep(batch=64), TextStep(batch=4, length=128, vocabulary=8192))
SIZES = {"image_batch": [16, 32, 64, 128, 256], "text_batch": [2, 4, 8, 16]} | {
    "length": [64, 128, 256, 512],
    "vocabulary": [16384, 32768, 65536, 131072, 262144],
}
GPU_BASES = (ImageStep(batch=1024), TextStep(batch=32, length=256, vocabulary=32768))
GPU_SIZES = {"image_batch": [256, 512, 1024, 2048, 4096], "text_batch": [32, 64, 128, 256]} | {
    "length": [128, 256, 512, 1024],
    "vocabulary": [32768, 65536, 131072, 262144],
}
QUICK_BASES = (ImageStep(batch=16), TextStep(batch=2, length=32, vocabulary=1024))
QUICK_SIZES = {"image_batch": [16, 32], "text_batch": [2, 4], "length": [32, 64], "vocabulary": [1024, 2048]}


@dataclass
class BenchmarkArguments(NetworkArguments):
    only: Literal["images", "text"] | None = flag(None, "Leave the other out.")
    image_batch: list[int] | None = flag(None, "Images of a step. Unset: 16 to 256, on a GPU 256 to 4096.")
    text_batch: list[int] | None = flag(None, "Sequences of a step. Unset: 2 to 16, on a GPU 32 to 256.")
    length: list[int] | None = flag(None, "Tokens of a sequence. Unset: 64 to 512, on a GPU 128 to 1024.")
    vocabulary: list[int] | None = flag(None, "Tokens to choose from. Unset: 16384 to 262144, on a GPU from 32768.")
    processes: list[int] | None = flag(
        None, "Numbers of processes; 1 alone: no such table. Unset: 1 2, or up to all GPUs."
    )
    keep_memory: bool = flag(True, "Keep freed memory on a CPU, which would distort the growth otherwise.")
    rounds: int = flag(3, "Turns of each size; the fastest counts.")
    json: str | None = flag(None, "Write the figures to this file.")
    quick: bool = flag(False, "Two small sizes of each axis, one turn of four steps.")
    case: str | None = flag(None, "Used by the script: one step in this process.")
    result: str | None = flag(None, "Used by the script: where its seconds go.")

    def __post_init__(self) -> None:
        if self.quick:
            self.rounds, self.steps = 1, 4
        super().__post_init__()
        torch.set_num_threads(1)  # stable on a shared machine, and as in each of several processes
        sizes = QUICK_SIZES if self.quick else GPU_SIZES if torch.cuda.is_available() else SIZES
        for name, usual in sizes.items():
            setattr(self, name, getattr(self, name) or usual)
            check_sizes(name, getattr(self, name))
        self.processes = self.processes or usual_processes()
        if self.processes != [1]:
            check_sizes("processes", self.processes)
        if torch.cuda.is_available() and self.processes[-1] > torch.cuda.device_count():
            raise ValueError(f"processes {self.processes}: each takes a GPU, and there are {torch.cuda.device_count()}")

    @property
    def axes(self) -> list["Axis"]:
        bases = QUICK_BASES if self.quick else GPU_BASES if torch.cuda.is_available() else BASES
        images, text = bases
        found = []
        if self.only != "text":
            found += [Axis(images, "batch", self.image_batch), Axis(images, "processes", self.processes)]
        if self.only != "images":
            found += [Axis(text, "batch", self.text_batch), Axis(text, "length", self.length)]
            found += [Axis(text, "vocabulary", self.vocabulary), Axis(text, "processes", self.processes)]
        return [axis for axis in found if axis.sizes != [1]]


def usual_processes() -> list[int]:
    """Powers of two up to the number of GPUs; on a CPU up to two."""
    most = torch.cuda.device_count() if torch.cuda.is_available() else 2
    return [*(n for n in (1, 2, 4, 8) if n < most), most]


@dataclass
class Axis:
    """One table: a base's step with one of its sizes changed."""

    base: Step
    name: str
    sizes: list[int]

    @property
    def title(self) -> str:
        others = {name: size for name, size in asdict(self.base).items() if name != self.name}
        more = f" ({', '.join(f'{name} {size:,}' for name, size in others.items())})" if others else ""
        return f"{self.base.unit.capitalize()} over {self.name}{more}"

    def loops(self, setting: Setting) -> dict[str, Callable[[], list[float]]]:
        if self.name == "processes":
            return {str(n): partial(in_processes, n, self.base) for n in self.sizes}
        return {str(n): partial(seconds, replace(self.base, **{self.name: n}), setting) for n in self.sizes}

    def counts(self) -> list[int]:
        """Images or tokens of a step at each size."""
        if self.name == "processes":
            return [n * self.base.count for n in self.sizes]
        return [replace(self.base, **{self.name: n}).count for n in self.sizes]


@dataclass
class Measured:
    axis: Axis
    seconds: list[float]  # of a step, at each size

    @property
    def rates(self) -> list[float]:
        return [count / s for count, s in zip(self.axis.counts(), self.seconds, strict=True)]

    @property
    def sentence(self) -> str:
        if self.axis.name != "processes":
            return Growth(self.axis.name, self.axis.sizes, self.seconds).sentence
        (first, last), rates = (self.axis.sizes[0], self.axis.sizes[-1]), self.rates
        return (
            f"{first} to {last} processes: {rates[-1] / rates[0]:.2f} times the {self.axis.base.unit} a second, "
            f"{last / first:.2f} is the maximum"
        )

    def table(self) -> str:
        unit, before = self.axis.base.unit, [None, *self.seconds]
        rows = [
            (f"{n:,}", f"{rate:,.0f}", f"{1000 * now:.1f}", f"{now / then:.2f}" if then else "-")
            for n, rate, now, then in zip(self.axis.sizes, self.rates, self.seconds, before, strict=False)
        ]
        return table((self.axis.name, f"{unit}/s", "ms a step", "growth of time"), rows)

    def results(self) -> dict[str, Any]:
        names = {"unit": self.axis.base.unit, "axis": self.axis.name, "base": asdict(self.axis.base)}
        points = {"sizes": self.axis.sizes, "seconds": self.seconds, "rates": self.rates}
        if self.axis.name == "processes":
            return names | points | {"sentence": self.sentence}
        growth = Growth(self.axis.name, self.axis.sizes, self.seconds)
        exponents = {"exponent": growth.exponent, "last_exponent": growth.last_exponent}
        return names | points | exponents | {"sentence": self.sentence}


def in_processes(count: int, step: Step) -> list[float]:
    """Seconds of a step, measured by running this script in `count` processes with one thread each."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"] if count > 1 else []
    gc.collect()
    torch.cuda.empty_cache()  # frees GPU memory for the other processes
    case = json.dumps({"unit": step.unit} | asdict(step))
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "seconds.json"
        command = [sys.executable, *launch, __file__, *sys.argv[1:], "--case", case, "--result", str(result)]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{count} processes, {step}: exit {done.returncode}\n{done.stderr[-2000:]}")
        return json.loads(result.read_text())


def one_case(benchmark: BenchmarkArguments, setting: Setting) -> None:
    """A process of `in_processes`: the first writes its seconds."""
    case = json.loads(str(benchmark.case))
    found = seconds(KINDS[case.pop("unit")](**case), setting, cpu_time=False)
    if os.environ.get("RANK", "0") == "0":
        Path(str(benchmark.result)).write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def main() -> None:
    benchmark, data, given = parse((BenchmarkArguments, ImageDataArguments, DistillationArguments), description=__doc__)
    kept = benchmark.keep_memory and keep_freed_memory()
    setting = Setting(benchmark, data, given)
    if benchmark.case:
        return one_case(benchmark, setting)
    results = []
    precision, memory = "bf16 autocast" if given.bf16 else "float32", "kept" if kept else "as the system has it"
    print(f"{given.device}, {precision}, {benchmark.rounds} rounds; freed memory: {memory}", flush=True)
    for axis in benchmark.axes:
        times = take_turns(axis.loops(setting), benchmark.rounds)
        measured = Measured(axis, [min(turns) for turns in times.values()])
        results.append(measured.results() | {"turns": times})
        print(f"\n{axis.title}\n\n{measured.table()}\n\n{measured.sentence}", flush=True)
    write(benchmark.json, results=results, settings=vars(benchmark), linear=LINEAR, kept=kept, bf16=bool(given.bf16))
    return None


if __name__ == "__main__":
    main()
