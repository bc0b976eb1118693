"""Run by tests: write rows that can be told from their slot and writer, and say each slot that is done."""

import sys

import torch

from hfkd.teachers.store import LogitStore

SLOTS, CLASSES, KEY = 4000, 50, {"teacher": "a"}


def rows_of(slots, writer):
    """[M, CLASSES], other for each slot and writer."""
    generator = torch.Generator().manual_seed(writer)
    return 5 * torch.randn(SLOTS, CLASSES, generator=generator)[slots]


if __name__ == "__main__":
    path, writer = sys.argv[1], int(sys.argv[2])
    store = LogitStore(path, KEY, SLOTS, CLASSES)
    print("ready", flush=True)
    sys.stdin.readline()
    for slots in torch.arange(SLOTS).split(64):
        store.write(slots, rows_of(slots, writer))
        print(int(slots[-1]), flush=True)
