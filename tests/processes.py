"""Processes that are cheap to start: forked from a server that has imported torch and hfkd already."""

import multiprocessing
import os
import signal
import socket

MODULES = ["hfkd.trainer", "hfkd.report.run", "peft", "sklearn"]


def start(target, *arguments):
    """A running process that calls `target(*arguments)`, a function of a module that a new process can import."""
    multiprocessing.set_forkserver_preload(MODULES)
    process = multiprocessing.get_context("forkserver").Process(target=target, args=arguments)
    process.start()
    return process


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


def _on_rank(log, rank, count, port, target, *arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    print_to(log)
    import torch

    torch.set_num_threads(1)
    target(*arguments)
    torch.distributed.destroy_process_group()


def print_to(path):
    """Whatever this process writes to its terminal goes to the end of the file instead."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
