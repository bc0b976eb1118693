"""How the cost of a text step grows: with sequence length, vocabulary, batch size, and over two processes.

    OMP_NUM_THREADS=1 python benchmarks/text_scaling.py

One training step (both networks' forward, EA-KD loss, backward, AdamW) of GPT-2-shaped models with random weights on
random tokens, half of them targets. Each axis doubles from the base, the rest at the base; stated are tokens a second
and how a step's time grows per doubling: 2 is linear, and below it costs are shared. Two processes (gloo or nccl, one
thread each) train twice the rows; 2 times the tokens a second would be all that can be had.
The settings of an axis take turns, --rounds times; the fastest step counts. On a CPU the seconds are the process' own
CPU time, which other processes on the machine hardly change; with several processes they are the wall's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data.text_collate import TokenCollator
from hfkd.report.environment import environment

BASE = {"length": 128, "vocab": 8192, "batch": 4}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--vocab", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--student", type=int, nargs=2, default=[128, 2], metavar=("WIDTH", "LAYERS"))
    parser.add_argument("--teacher", type=int, nargs=2, default=[192, 4], metavar=("WIDTH", "LAYERS"))
    parser.add_argument("--steps", type=int, default=6, help="of a turn; the first is not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip_processes", action="store_true", help="leave the run with two processes out")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a rank of the run with several processes
    return parser.parse_args()


class Clock(TrainerCallback):
    """When each optimizer step ended; on a CPU by the process' own CPU time, unless `wall`."""

    def __init__(self, wall: bool) -> None:
        self.ends: list[float] = []
        self.wall = wall

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter() if torch.cuda.is_available() or self.wall else time.process_time())


def gpt2(size: list[int], case: dict[str, int], seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=case["vocab"],
        n_positions=max(case["length"], 8),
        n_embd=size[0],
        n_layer=size[1],
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def step_seconds(args: argparse.Namespace, case: dict[str, int]) -> float:
    """The fastest of some training steps."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(case["vocab"], (4 * case["batch"], case["length"]), generator=g).tolist()
    half = case["length"] // 2
    rows = Dataset.from_list([{"input_ids": row, "labels": [-100] * half + row[half:]} for row in ids])
    with tempfile.TemporaryDirectory() as folder:
        trainer = DistillationTrainer(
            gpt2(args.student, case, 0),
            gpt2(args.teacher, case, 1),
            DistillationArguments(
                folder,
                objective="kd(scale='none')",
                temperature="2.0",
                weighting="entropy",
                per_device_train_batch_size=case["batch"],
                max_steps=args.steps,
                save_strategy="no",
                report_to="none",
                logging_strategy="no",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
                bf16=torch.cuda.is_available(),
                dataloader_pin_memory=False,
                ddp_find_unused_parameters=False,
            ),
            data_collator=TokenCollator(0),
            train_dataset=rows,
        )
        clock = Clock(wall=args.one is not None)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
    return min(b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False))


def along(axis: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The axis' settings, each with its fastest step over all turns."""
    cases = [BASE | {axis: value} for value in getattr(args, axis)]
    seconds = [float("inf")] * len(cases)
    for _ in range(args.rounds):
        for i, case in enumerate(cases):
            seconds[i] = min(seconds[i], step_seconds(args, case))
    return [case | {"axis": axis, "seconds": s} for case, s in zip(cases, seconds, strict=True)]


def over_processes(count: int, args: argparse.Namespace) -> dict[str, Any]:
    """`BASE` on each of `count` processes with a thread each: a step's seconds on the first of them."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone", __file__]
    with tempfile.NamedTemporaryFile() as file:
        done = subprocess.run(
            [*command, f"--steps={args.steps}", "--one", file.name], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{count} processes failed (exit {done.returncode}):\n{done.stderr[-2000:]}")
        seconds = float(Path(file.name).read_text())
    return BASE | {"axis": "processes", "processes": count, "seconds": seconds}


def table(rows: list[dict[str, Any]]) -> str:
    axis = rows[0]["axis"]
    lines = [f"| {axis} | tokens/s | step, ms | growth of time per doubling |", "|---:|---:|---:|---:|"]
    for before, row in zip([None, *rows], rows, strict=False):
        tokens = row["batch"] * row["length"] * row.get("processes", 1)
        growth = f"{row['seconds'] / before['seconds']:.2f}" if before else "-"
        lines.append(f"| {row[axis]:,} | {tokens / row['seconds']:,.0f} | {1e3 * row['seconds']:.0f} | {growth} |")
    return "\n".join(lines)


def main() -> None:
    args = parse_args()
    if args.one:
        seconds = step_seconds(args, BASE)
        if int(os.environ["RANK"]) == 0:
            Path(args.one).write_text(str(seconds))
        return
    results = []
    print(f"base: {BASE}; student {args.student}, teacher {args.teacher}; {torch.get_num_threads()} threads\n")
    for axis in BASE:
        rows = along(axis, args)
        results += rows
        print(table(rows), "\n", sep="", flush=True)
    if not args.skip_processes:
        turns = [[over_processes(n, args) for n in (1, 2)] for _ in range(args.rounds)]
        rows = [min(column, key=lambda row: row["seconds"]) for column in zip(*turns, strict=True)]
        results += rows
        print(table(rows))
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(), "results": results}, indent=2))


if __name__ == "__main__":
    main()
