"""Images per second and core of the input pipeline: fetch, crop, flip, normalise and stack, shuffled.

    python benchmarks/input_pipeline.py --dataset_name uoft-cs/cifar100

Batches of the trainer's DataLoader, without networks: from images kept as tensors (`resident`, the default up to 1
GiB), on the GPU if there is one, and row by row. They run alternately; the fastest turn counts. On a CPU, seconds are
processor time.
"""

import itertools
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader
from turns import now, table, take_turns, write

from hfkd import DistillationArguments
from hfkd.data import ImageDataArguments, ResidentImages
from hfkd.data.collate import ImageCollator
from hfkd.utils.flags import flag
from hfkd.utils.parsing import parse

RESIDENT, ROW_BY_ROW = "resident", "row by row"
TARGET = 40_000  # images a second of a core, at least, of resident images


@dataclass
class BenchmarkArguments:
    batch_sizes: list[int] = flag(lambda: [64, 256], "Images of a batch.")
    images: int = flag(10_240, "Images of a turn.")
    rounds: int = flag(5, "Turns of each; the fastest counts.")
    json: str | None = flag(None, "Write the figures to this file.")
    quick: bool = flag(False, "Two turns of 2,560 images.")

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        if self.quick:
            self.images, self.rounds = 2560, 2


def seconds(images: Any, batch_size: int, count: int) -> list[float]:
    """Seconds per image, averaged over a turn without the first batch, which has cold caches."""
    batches = iter(DataLoader(images, batch_size, shuffle=True, collate_fn=ImageCollator(), drop_last=True))
    next(batches)
    start = now()
    made = sum(len(batch["labels"]) for batch in itertools.islice(batches, max(count // batch_size, 1)))
    return [(now() - start) / made]


def main() -> None:
    benchmark, data, given = parse((BenchmarkArguments, ImageDataArguments, DistillationArguments), description=__doc__)
    ways = {RESIDENT: replace(data, resident=True).load()[0], ROW_BY_ROW: replace(data, resident=False).load()[0]}
    if not isinstance(ways[RESIDENT], ResidentImages):
        raise ValueError(f"{data.dataset_name} takes more than 1 GiB: use smaller images, or --max_train_images")
    ways[RESIDENT].move(given.device)
    loops = {
        f"{way}, batch {size}": partial(seconds, images, size, benchmark.images)
        for way, images in ways.items()
        for size in benchmark.batch_sizes
    }
    rates = {name: 1 / min(turns) for name, turns in take_turns(loops, benchmark.rounds).items()}
    rows = [(name, f"{rate:,.0f}" + (f" (≥ {TARGET:,})" if RESIDENT in name else "")) for name, rate in rates.items()]
    print(table(("input", f"images/s, {given.device}"), rows))
    write(benchmark.json, images_per_second=rates, settings=vars(benchmark), device=str(given.device))


if __name__ == "__main__":
    main()
