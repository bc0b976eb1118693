"""In a process of its own: write rows that can be told from their slot and writer, and say each slot that is done."""

import torch

from hfkd.teachers.image_cache.store import LogitStore

SLOTS, CLASSES, KEY = 4000, 50, {"teacher": "a"}


def rows_of(slots, writer):
    """[M, CLASSES], other for each slot and writer."""
    generator = torch.Generator().manual_seed(writer)
    return 5 * torch.randn(SLOTS, CLASSES, generator=generator)[slots]


def write(path, writer, pipe):
    torch.set_num_threads(1)
    store = LogitStore(path, KEY, SLOTS, CLASSES)
    pipe.send("ready")
    pipe.recv()
    for slots in torch.arange(SLOTS).split(64):
        store.write(slots, rows_of(slots, writer))
        pipe.send(int(slots[-1]))
