"""Two ranks that train and then end as programs do, many times over: python tests/exit_job.py FOLDER TIMES.

Each rank is forked from a process that has imported everything, and runs to the interpreter's own end: exit handlers,
destructors and threads included. Prints each run's exit codes, and whether the ranks had left their process group when
the handlers of a user's own ran.
"""

import atexit
import os
import socket
import sys
from pathlib import Path

import torch
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer


def train(folder):
    rows = {"train_dataset": Rows(), "eval_dataset": Rows(13, seed=3)}
    trainer = DistillationTrainer(Net(), teacher(), arguments(folder, max_steps=2, dataloader_num_workers=0), **rows)
    trainer.train()
    trainer.evaluate()


def fork_rank(rank, port, folder):
    """The process id; in the child None, which then is rank `rank` of two."""
    child = os.fork()
    if child:
        return child
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in ours.items()}
    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    return None


def say_group():
    """In one piece: both ranks write into one file."""
    os.write(1, b"group open\n" if torch.distributed.is_initialized() else b"group left\n")


def main(folder, times):
    torch.set_num_threads(1)
    for run in range(times):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = []
        for rank in range(2):
            child = fork_rank(rank, port, folder / str(run))
            if child is None:
                atexit.register(say_group)
                return train(folder / str(run))
            ranks.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in ranks]
        print(run, *codes, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
