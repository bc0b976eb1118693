"""Run by every rank of a test: scan packed images and write what this rank got, and how much its teacher saw.

Then both fill one cache of logits at once, a half each, and read it whole.
"""

import sys

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from toys import Net, teacher

from hfkd.data.collate import ImageCollator
from hfkd.data.transforms import ImageTransform, pack_pixels
from hfkd.teachers import CachedTeacher, FrozenTeacher, place, scan


def packed(n=23, seed=0, transform=None):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    rows = {"pixels": [pack_pixels(p) for p in pixels], "labels": [i % 5 for i in range(n)], "index": list(range(n))}
    return Dataset.from_dict(rows).with_transform(transform or ImageTransform(augment=True))


class Counted(Net):
    """The toy teacher, which counts the images it sees."""

    def __init__(self):
        super().__init__(16)
        self.load_state_dict(teacher().state_dict())
        self.images = 0

    def forward(self, x):
        self.images += len(x)
        return super().forward(x)


if __name__ == "__main__":
    out = sys.argv[1]
    accelerator = Accelerator(cpu=True)
    rank, net = accelerator.process_index, Counted()
    live = place(FrozenTeacher(net), accelerator)
    record = {"results": {}, "images": {}}
    for which, folder in {"first": "shared", "second": "shared", "own": f"own-{rank}"}.items():
        net.images = 0
        keywords = {"batch_size": 4, "cache_dir": f"{out}/{folder}", "progress_bar": False}
        record["results"][which] = vars(scan(live, packed(), accelerator=accelerator, **keywords))
        record["images"][which] = net.images
    batch, taught = (
        ImageCollator()(packed().__getitems__(list(range(23)))),
        CachedTeacher(live, packed(), out, accelerator),
    )
    taught(**{name: column[rank::2] for name, column in batch.items()})
    accelerator.wait_for_everyone()
    record["cached"] = taught(**batch)
    record["hits"] = (taught.rows, taught.hits)
    torch.save(record, f"{out}/rank-{rank}.pt")
    torch.distributed.destroy_process_group()
