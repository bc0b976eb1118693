"""The number of operations of a training step: on a GPU each is a kernel launch, which dominate for small batches.

    python benchmarks/launches.py --dataset_name uoft-cs/cifar100

Everything from the loader to the optimizer is counted, except views: the difference between two runs, one of which has
one more step. Device and batch size do not change the count, except that optimizers on a CPU use some operations for
each parameter, in the bare loop and in Trainer. The loops are those of image_step.py.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace

import image_step
from image_step import BARE, CACHED, LIVE, Loops, training_arguments
from operations import Operations
from transformers import set_seed
from turns import table, write

from hfkd import DistillationArguments
from hfkd.data import ImageDataArguments
from hfkd.utils.parsing import parse

STEPS = 8


def of_a_step(loops: Callable[[int], Loops], way: str) -> int:
    """Operations of step 9."""
    totals = []
    for steps in (STEPS, STEPS + 1):
        these = loops(steps)
        with Operations() as counted:
            {BARE: these.bare, LIVE: these.hfkd, CACHED: these.cached}[way]()
        totals.append(counted.total)
    return totals[1] - totals[0]


def main() -> None:
    arguments = (image_step.BenchmarkArguments, ImageDataArguments, DistillationArguments)
    benchmark, data, given = parse(arguments, description=__doc__)
    benchmark.batch_size = min(benchmark.batch_size, 4)
    train, _ = data.load()
    with tempfile.TemporaryDirectory() as folder:

        def loops(steps: int) -> Loops:
            set_seed(0)  # the same teacher each time
            given.output_dir = tempfile.mkdtemp(dir=folder)  # runs of several lengths
            args = training_arguments(given, steps, benchmark.batch_size)
            return Loops(replace(benchmark, steps=steps), args, train, None, folder)

        loops(STEPS + 1).cached()
        found = {way: of_a_step(loops, way) for way in (BARE, LIVE, CACHED)}
    rows = [(way, count, f"{count / found[BARE]:.2f}") for way, count in found.items()]
    print(table(("loop", "operations a step", "/ bare"), rows))
    write(benchmark.json, operations=found, settings=vars(benchmark))


if __name__ == "__main__":
    main()
