"""How this process was launched: on CPU or not, alone or as one of several (with what batch, sharded or not), and with
which flags.
"""

import atexit
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import get_int_from_env, parse_flag_from_env
from transformers.utils import is_torch_xla_available

from hfkd.utils.ranks import of_each

# Of torchrun and MPI implementations.
RANKS = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def computes_on_cpu() -> bool:
    """Whether there is no accelerator, or `accelerate launch --cpu` disables it.

    Raises ValueError if several processes are launched but this one has no rank: on CPUs accelerate would wait half an
    hour for the others.
    """
    if get_int_from_env(["WORLD_SIZE"], 1) > 1 and not any(name in os.environ for name in RANKS):
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but this process has no RANK: start the processes with "
            "`accelerate launch` or torchrun, or unset WORLD_SIZE for a single one"
        )
    accelerator = torch.accelerator.is_available() or is_torch_xla_available()
    return not accelerator or parse_flag_from_env("ACCELERATE_USE_CPU")


def uses_fsdp(args: Any) -> bool:
    """Whether the student will be sharded: by `--fsdp`, or by the configuration of `accelerate launch`."""
    return bool(args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")


def processes() -> PartialState:
    """accelerate's state, with the process group also initialised on CPUs, unlike by default.

    Raises ValueError if the processes have not joined.
    """
    state = PartialState(cpu=computes_on_cpu())
    check_world_size(state.num_processes)
    return state


@cache
def leave_group_at_exit() -> None:
    """Destroy the process group before this process exits, because its threads may otherwise abort the process.

    This is not done after an exception, where other processes may wait for this one: the launcher stops them.
    """
    atexit.register(_leave_group)


def _leave_group() -> None:
    failed = getattr(sys, "last_exc", getattr(sys, "last_value", None)) is not None
    if not failed and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_world_size(joined: int) -> None:
    """Raise ValueError if the number of joined processes differs from that of launched ones.

    Joined processes leave their group at exit.
    """
    launched = get_int_from_env(["WORLD_SIZE"], 1)
    if launched > 1 and launched != joined:
        raise ValueError(
            f"WORLD_SIZE={launched}, but the process group has {joined} processes: each would do all the work and "
            "overwrite the files of the others. Start them with `accelerate launch` or torchrun, make no "
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
    """Raise ValueError if several processes are launched, each of which would do all of `work`."""
    if (launched := get_int_from_env(["WORLD_SIZE"], 1)) > 1:
        raise ValueError(
            f"WORLD_SIZE={launched}, but {work} runs in one process, as several would overwrite each other's files: "
            "start it without a launcher, or with accelerate launch --num_processes 1"
        )


def refuse_unshared(folder: str | Path, seen: bool) -> None:
    """Raise ValueError, in every process, unless each has `seen` in `folder` what the main process has written there.

    On machines without a shared file system each would write its part of the files to a folder of its own.
    """
    blind = [rank for rank, one in enumerate(of_each(seen)) if not one]
    if blind:
        raise ValueError(
            f"{folder} is another folder for some processes ({blind}), which do not see what process 0 has written "
            "there: choose one on a file system that all machines share, or start the processes on one machine"
        )


def refuse_other_runs(folder: str | Path) -> None:
    """Raise ValueError, in every process, unless all are about to do the run in `folder`, named as the main one does.

    A process that does not see which runs are finished would take part in one with the gradients of another.
    """
    runs = of_each(str(Path(*Path(folder).parts[-2:])))
    if len(set(runs)) > 1:
        raise ValueError(
            f"the processes would do different runs ({', '.join(runs)}), because they do not find the same "
            "finished ones: set output_dir to a folder on a file system that all machines share"
        )


def check_accumulation(steps: int) -> None:
    """Raise ValueError if the launcher was given another number of accumulation steps, which it would ignore."""
    wanted = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", _launcher().get("gradient_accumulation_steps"))
    if wanted not in (None, "auto", str(steps), steps):
        raise ValueError(
            f"accelerate was launched with gradient_accumulation_steps={wanted}, but training uses {steps}: pass "
            "--gradient_accumulation_steps after the name of the script, not to the launcher"
        )


def batch_sizes(args: Any, state: Any) -> dict[str, int]:
    """The sizes of training batches, one of which processes share with `split_batches`.

    `auto_find_batch_size` may have lowered them, which a trainer's `state` says once it trains.
    """
    per_device = state.train_batch_size or args.train_batch_size
    several = 1 if args.accelerator_config.split_batches else args.world_size // _with_same_rows()
    whole = per_device * args.gradient_accumulation_steps * several
    return {"per_device_train_batch_size": per_device, "batch_size": whole}


def _with_same_rows() -> int:
    """How many processes have the same rows, as each computes a part of every layer (tensor parallelism)."""
    config = getattr(AcceleratorState(), "parallelism_config", None) if is_initialized() else None
    return getattr(config, "tp_size", None) or 1


def _launcher() -> dict[str, Any]:
    """The flags of `accelerate launch` by name, if it started this process; otherwise an empty dict."""
    try:
        line = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):  # no parent, or no permission to read it
        return {}
    return launcher_flags(line)


def launcher_flags(line: list[str]) -> dict[str, Any]:
    """The flags in a command line of `accelerate launch` by name; an empty dict for any other command line."""
    names = [os.path.basename(word) for word in line]
    for start in (["accelerate", "launch"], ["accelerate-launch"], ["-m", "accelerate.commands.launch"]):
        for i in (0, 1):  # after the interpreter
            if names[i : i + len(start)] == start:
                from accelerate.commands.launch import launch_command_parser  # only needed here

                return vars(launch_command_parser().parse_args(line[i + len(start) :]))
    return {}
