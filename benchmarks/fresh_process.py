"""Measures one case of a benchmark in a process of its own, called with `--one CASE`, which prints a JSON object."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def peak() -> int:
    """The peak number of bytes so far."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_processes(script: str, case: dict[str, Any], rounds: int) -> dict[str, float]:
    """Memory of a run in which glibc returns freed blocks of 4 MiB at once, and the time of the fastest of several."""
    exact = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**20)}
    memory = _in_fresh_process(script, case | {"repeats": 1, "keep_memory": False}, exact)
    return memory | {"seconds": min(_in_fresh_process(script, case, {})["seconds"] for _ in range(rounds))}


def _in_fresh_process(script: str, case: dict[str, Any], environment: dict[str, str]) -> dict[str, float]:
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, script, "--one", json.dumps(case)]
    child = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path, **environment}
    )
    if child.returncode:
        raise RuntimeError(f"{case} failed (exit {child.returncode}):\n{child.stderr[-2000:]}")
    return json.loads(child.stdout)
