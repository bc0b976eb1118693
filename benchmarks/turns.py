"""Shared by the step benchmarks: loops that run alternately, so that a busy machine affects all alike; table; JSON.

The fastest turn of each loop counts, as a busy machine can only add time.
"""

import itertools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback, TrainingArguments

from hfkd.reports.environment import environment

WARM_UP = 5  # steps of a turn that are not counted


def wall() -> float:
    """Wall time in seconds, after synchronizing with a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def now() -> float:
    """Seconds: wall time on a GPU, processor time on a CPU, which hardly depends on other processes."""
    return wall() if torch.cuda.is_available() else time.process_time()


class Clock(TrainerCallback):
    """The time at the end of each step, also as a Trainer callback; synchronizes with a GPU at both ends. `cpu_time`:

    on a CPU use processor time, if only this process works, instead of wall time.
    """

    def __init__(self, steps: int, warm_up: int = WARM_UP, cpu_time: bool = False) -> None:
        if steps < warm_up + 2:
            raise ValueError(f"{steps} steps: the first {warm_up} are not counted; take {warm_up + 2} or more")
        self.steps, self.warm_up, self.ends = steps, warm_up, list[float]()
        self.read = time.process_time if cpu_time and not torch.cuda.is_available() else time.perf_counter

    def tick(self) -> None:
        if torch.cuda.is_available() and len(self.ends) in (self.warm_up, self.steps - 1):
            torch.cuda.synchronize()
        self.ends.append(self.read())

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.tick()

    @property
    def seconds(self) -> list[float]:
        """Seconds of each counted step; on a GPU, where steps are asynchronous, their mean."""
        counted = self.ends[self.warm_up :]
        if torch.cuda.is_available():
            return [(counted[-1] - counted[0]) / (len(counted) - 1)]
        return [b - a for a, b in itertools.pairwise(counted)]


Arguments = TypeVar("Arguments", bound=TrainingArguments)


def on_one_gpu(args: Arguments) -> Arguments:
    """Restrict Trainer to one GPU: it would spread a process's batches over all n GPUs, with n times the batch."""
    args._n_gpu = min(args.n_gpu, 1)
    return args


def take_turns(loops: dict[str, Callable[[], list[float]]], rounds: int) -> dict[str, list[float]]:
    """Run the loops alternately; returns the median seconds per step of each turn."""
    medians: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            medians[name].append(statistics.median(loop()))
    return medians


def in_child(loop: Callable[[], list[float]]) -> list[float]:
    """Run `loop` in a fork of this process, if it has no GPU, so that its process-wide settings do not persist.

    hfkd
    makes its process keep freed memory, which would speed up the next loop.
    """
    if torch.cuda.is_available():
        return loop()
    ours, its = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: its.send(loop()))
    child.start()
    its.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError("a loop's process ended without a result: see its error above") from None
    finally:
        child.join()


def ratio(times: dict[str, list[float]], name: str, other: str) -> float:
    """One loop's time over another's, the fastest turn of each."""
    return min(times[name]) / min(times[other])


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products and convolutions, backward included."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a square matrix product, the best of ten."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def write(path: Path | str | None, **results: Any) -> None:
    if path:
        Path(path).write_text(json.dumps(results | {"environment": environment()}, indent=2, default=str))
