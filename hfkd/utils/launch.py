"""How this process was launched: on a CPU or not, alone or as one of several, and what the launcher was told."""

import atexit
import os
import sys
from functools import cache
from typing import Any

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import get_int_from_env, parse_flag_from_env
from transformers.utils import is_torch_xla_available

RANKS = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # torchrun, and kinds of MPI


def computes_on_cpu() -> bool:
    """Whether there is no accelerator, or `accelerate launch --cpu` leaves it alone.

    Raises ValueError for a launch of several processes that does not say which of them this one is: on CPUs accelerate
    would wait half an hour for the others.
    """
    if get_int_from_env(["WORLD_SIZE"], 1) > 1 and not any(name in os.environ for name in RANKS):
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but this process has no RANK: start the processes with "
            "`accelerate launch` or torchrun, or unset WORLD_SIZE for a single one"
        )
    accelerator = torch.accelerator.is_available() or is_torch_xla_available()
    return not accelerator or parse_flag_from_env("ACCELERATE_USE_CPU")


def processes() -> PartialState:
    """accelerate's state, with the ranks of a launch on CPUs joined: by itself it joins those of GPUs only.

    Raises ValueError where they have not joined.
    """
    state = PartialState(cpu=computes_on_cpu())
    check_world_size(state.num_processes)
    return state


@cache
def leave_group_at_exit() -> None:
    """End the group of processes, and its threads, before this process ends: open ones may abort it after its work.

    Not where an exception ends it: the others, which may wait for this one, are for the launcher to stop.
    """
    atexit.register(_leave_group)


def _leave_group() -> None:
    failed = getattr(sys, "last_exc", getattr(sys, "last_value", None)) is not None
    if not failed and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_world_size(joined: int) -> None:
    """Raise ValueError if this launch has several processes and another number of them works together.

    Those that do leave their group when they end.
    """
    launched = get_int_from_env(["WORLD_SIZE"], 1)
    if launched > 1 and launched != joined:
        raise ValueError(
            f"WORLD_SIZE={launched}, but the processes that work together here are {joined}: each would do the whole "
            "work and write over the files of the others. Start them with `accelerate launch` or torchrun, make no "
            "PartialState or Accelerator before the training arguments, or unset WORLD_SIZE for a single process"
        )
    wanted = _launcher().get("num_processes")
    if wanted is not None and wanted != joined:
        raise ValueError(
            f"accelerate launch --num_processes {wanted} has started {joined}: with --cpu, or a configuration whose "
            "distributed_type is NO, it starts one; use accelerate_configs/multi_cpu.yaml, or leave the flag out"
        )
    if joined > 1:
        leave_group_at_exit()


def refuse_several(work: str) -> None:
    """Raise ValueError if this launch has several processes, each of which would do the whole of `work`."""
    if (launched := get_int_from_env(["WORLD_SIZE"], 1)) > 1:
        raise ValueError(
            f"WORLD_SIZE={launched}: {work} is for one process, and several would write over each other's files: start "
            "it without a launcher, or with accelerate launch --num_processes 1"
        )


def check_accumulation(steps: int) -> None:
    """Raise ValueError if the launcher was told to accumulate other than `steps` batches: it hands that to nobody."""
    wanted = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", _launcher().get("gradient_accumulation_steps"))
    if wanted not in (None, "auto", str(steps), steps):
        raise ValueError(
            f"accelerate was launched with gradient_accumulation_steps={wanted}, and training accumulates {steps}: "
            "give --gradient_accumulation_steps behind the name of the script, and leave the launcher's out"
        )


def _launcher() -> dict[str, Any]:
    """What `accelerate launch` was told, if it is what started this process, by name; None for what it was not."""
    try:
        line = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):  # no parent, or one that may not be looked at
        return {}
    return launcher_flags(line)


def launcher_flags(line: list[str]) -> dict[str, Any]:
    """The flags of a command line, by name, if it is one of `accelerate launch`; else nothing."""
    names = [os.path.basename(word) for word in line]
    for start in (["accelerate", "launch"], ["accelerate-launch"], ["-m", "accelerate.commands.launch"]):
        for i in (0, 1):  # behind the interpreter
            if names[i : i + len(start)] == start:
                from accelerate.commands.launch import launch_command_parser  # of no use to a script started otherwise

                return vars(launch_command_parser().parse_args(line[i + len(start) :]))
    return {}
