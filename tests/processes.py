"""Processes that are cheap to start: forked from a server that has imported torch and hfkd already."""

import ctypes
import multiprocessing
import os
import runpy
import signal
import socket
import sys

MODULES = ["hfkd.trainer", "hfkd.experiments.run", "peft", "sklearn"]


def start(target, *arguments):
    """A running process that calls `target(*arguments)`, a function of a module that a new process can import."""
    multiprocessing.set_forkserver_preload(MODULES)
    process = multiprocessing.get_context("forkserver").Process(target=target, args=arguments)
    process.start()
    return process


def start_script(log, path, *arguments):
    """A running process that does what `python path arguments` does; what it prints is in the file `log`."""
    return start(_on_rank, str(log), 0, 1, None, script, str(path), *map(str, arguments))


def on_ranks(log, count, target, *arguments):
    """Call `target` on `count` ranks (gloo); what each printed is in `log`-0, `log`-1, ...; the exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [start(_on_rank, f"{log}-{rank}", rank, count, port, target, *arguments) for rank in range(count)]
    for process in ranks:
        process.join(120)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    return [process.exitcode for process in ranks]


def script(path, *arguments):
    """Run a file as `python path arguments` would; a target for `start` and `on_ranks`."""
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def _on_rank(log, rank, count, port, target, *arguments):
    if count > 1:
        ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in ours.items()}
    print_to(log)
    import torch

    torch.set_num_threads(1)
    target(*arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def print_to(path):
    """Whatever this process writes to its terminal goes to the end of the file instead."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)


def obey_permissions():
    """Make this process one that may not write where a file's mode says so, as root may: by capset(2), on Linux."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    for kind in (0, 1):  # effective, permitted
        data[kind] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, data) == 0
