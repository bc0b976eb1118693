"""The environment of a run: code, library versions, machine."""

import os
import platform
import subprocess
from typing import Any

import torch

from hfkd.utils.own_version import installed_version, own_version

PACKAGES = ("torch", "torchvision", "transformers", "datasets", "accelerate", "timm", "hfkd")


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Code, versions and machine of this process, ready for JSON.

    `git` is `{"commit", "dirty"}` of the repository around the current directory (None outside of one); `hfkd` is its
    version and a hash of its code; a package that is not installed has version None; `devices` lists the accelerators,
    or the processor if there are none, or if the work was done on it (`device`). Contains no environment variables,
    user or host names or absolute paths, so that it can be published.
    """
    return {
        "git": _git(),
        "hfkd": own_version(),
        "versions": {"python": platform.python_version()} | {name: installed_version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "devices": [_processor()] if device is not None and device.type == "cpu" else _devices(),
        "torch_threads": torch.get_num_threads(),
    }


def _git() -> dict[str, Any] | None:
    commit = _git_output("rev-parse", "HEAD")
    if commit is None:
        return None
    status = _git_output("status", "--porcelain")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _git_output(*arguments: str) -> str | None:
    """What git prints; None without git, outside of a repository, before its first commit, or after five seconds."""
    try:
        done = subprocess.run(("git", *arguments), capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _devices() -> list[str]:
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return [f"{_processor()} (MPS)"]
    return [_processor()]


def _processor() -> str:
    """The processor's name; `platform.processor()` is empty on most Linux systems."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
