"""Run the benchmarks one after the other and compare the results with their targets.

    python benchmarks/run_all.py --output_dir runs/benchmarks --dataset_name uoft-cs/cifar100
        --teacher_checkpoint wrn_16_2.pth --text_dataset_name dolly.jsonl --tokenizer gpt2

Each benchmark is a separate process; NAME.log has its output and NAME.json its results. A failed one is marked in the
table, and the others still run. summary.md and summary.json have the table; the exit status is 1 if one failed.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from entries import ENTRIES
from summary import Record, Run, summarise

from hfkd import DistillationArguments
from hfkd.reports.environment import environment
from hfkd.utils.command import command

HERE = Path(__file__).parent
IMAGES = ("image_step", "teacher_scan", "input_pipeline", "scaling")  # these take --dataset_name
WITH_TEACHER = ("image_step", "teacher_scan", "scaling")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/benchmarks"), help="where everything goes")
    parser.add_argument("--only", nargs="+", choices=ENTRIES, metavar="NAME", help=", ".join(ENTRIES))
    parser.add_argument("--quick", action="store_true", help="pass --quick to each: shows that they run, no figures")
    parser.add_argument("--from_json", type=Path, metavar="FOLDER", help="run nothing: the table of the files there")
    parser.add_argument("--dataset_name", default="uoft-cs/cifar100", help="images: Hub id or folder")
    parser.add_argument("--teacher_checkpoint", help="the image teacher's weights; random ones cost the same")
    parser.add_argument("--text_dataset_name", default="databricks/databricks-dolly-15k", help="text_step's rows")
    parser.add_argument("--tokenizer", default="gpt2", help="text_step's: Hub id or folder")
    parser.add_argument("--trl", help="folder that holds the package trl, for text_step")
    parser.add_argument(
        "--flags", nargs="+", default=[], metavar="NAME='...'", help="more flags, such as image_step='--rounds 9'"
    )
    args = parser.parse_args(argv)
    unknown = [flags for flags in args.flags if flags.partition("=")[0] not in ENTRIES or "=" not in flags]
    if unknown:
        parser.error(f"--flags {unknown[0]!r}: give NAME='...' with a name of {', '.join(ENTRIES)}")
    return args


def command_line(name: str, args: argparse.Namespace) -> list[str]:
    entry = ENTRIES[name]
    words = [str(HERE / f"{entry.script}.py"), "--json", str(args.output_dir / f"{name}.json"), *entry.flags]
    if entry.script in IMAGES:
        words += ["--dataset_name", args.dataset_name]
    if entry.script in WITH_TEACHER and args.teacher_checkpoint and "--teacher_name" not in entry.flags:
        words += ["--teacher_checkpoint", args.teacher_checkpoint]
    if entry.script == "text_step":
        words += ["--dataset_name", args.text_dataset_name, "--tokenizer", args.tokenizer]
        words += ["--trl", args.trl] if args.trl else []
    words += ["--quick"] if args.quick else []
    more = (flags.partition("=")[2] for flags in args.flags if flags.partition("=")[0] == name)
    return words + [word for flags in more for word in shlex.split(flags)]


def run(name: str, args: argparse.Namespace) -> Run:
    """Run one benchmark, with output to the console and to NAME.log."""
    words = command_line(name, args)
    (args.output_dir / f"{name}.json").unlink(missing_ok=True)  # a failed run leaves no older results
    surroundings = {"OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"} | os.environ
    surroundings["PYTHONUNBUFFERED"] = "1"  # the console and the log see lines as they come
    shown = str(command(words))
    print(f"\n== {name}: {shown}\n", flush=True)
    start = time.perf_counter()
    with (
        open(args.output_dir / f"{name}.log", "w", encoding="utf-8") as log,
        subprocess.Popen(
            [sys.executable, *words],
            env=surroundings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            log.write(line)
            log.flush()
    return Run(shown, process.returncode, round(time.perf_counter() - start, 1))


def machine() -> dict[str, Any]:
    """The environment, whether bfloat16 is in hardware (on the GPU, if there is one), and what the CPU or GPU has."""
    return environment() | {"bf16": bool(DistillationArguments("unused").bf16), "abilities": abilities()}


def abilities() -> list[str]:
    if torch.cuda.is_available():
        return [f"compute capability {major}.{minor}" for major, minor in [torch.cuda.get_device_capability()]]
    vectors = ("avx", "amx", "neon", "sve", "bf16")
    return sorted(
        name for name, has in torch.cpu.get_capabilities().items() if has is True and name.startswith(vectors)
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    folder = args.from_json or args.output_dir
    names = args.only or [name for name, entry in ENTRIES.items() if entry.can_run]
    if args.from_json is None:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        record = Record.load(folder)
        record.machine = machine()
        for name in names:
            record.runs[name] = run(name, args)
            record.save(folder)  # an interrupted series keeps its results
    record = Record.load(folder)
    there = [n for n in ENTRIES if n in names or n in record.runs or (folder / f"{n}.json").exists()]
    print(f"\n{summarise(folder, there if args.only is None or args.from_json is None else names)}")
    return int(any(record.runs[name].exit for name in names if name in record.runs))


if __name__ == "__main__":
    sys.exit(main())
