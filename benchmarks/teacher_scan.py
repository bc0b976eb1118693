"""The teacher scan compared with the teacher's forward pass on batches in memory, alternately.

python benchmarks/teacher_scan.py --dataset_name uoft-cs/cifar100 --teacher_checkpoint wrn_16_2.pth
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from image_step import teacher_network
from turns import ratio, table, wall, write

from hfkd import DistillationArguments
from hfkd.data import ImageDataArguments, num_labels
from hfkd.teachers import FrozenTeacher, place, scan
from hfkd.utils.flags import flag
from hfkd.utils.parsing import parse

TARGET = 0.95  # of the bare forward's throughput


@dataclass
class BenchmarkArguments:
    teacher_name: str = flag("cifar_wrn_16_2", "Teacher.")
    teacher_checkpoint: str | None = flag(None, "Weights of the teacher; random ones cost the same.")
    images: int = flag(2560, "Images of a scan.")
    batch_size: int = flag(256, "Images of a batch.")
    rounds: int = flag(6, "Number of turns of each; the fastest counts.")
    threads: int = flag(1, "CPU threads; one gives stable results on a shared machine.")
    json: str | None = flag(None, "Write the figures to this file.")
    quick: bool = flag(False, "Two turns over 512 images.")

    def __post_init__(self) -> None:
        torch.set_num_threads(self.threads)
        if self.quick:
            self.images, self.rounds = 512, 2


def seconds(call: Callable[[], object]) -> float:
    start = wall()
    call()
    return wall() - start


def main() -> None:
    benchmark, data, args = parse((BenchmarkArguments, ImageDataArguments, DistillationArguments), description=__doc__)
    data.max_train_images = benchmark.images
    train, _ = data.load()
    teacher = teacher_network(benchmark.teacher_name, num_labels(train), benchmark.teacher_checkpoint)
    accelerator = Accelerator(cpu=args.use_cpu, mixed_precision="bf16" if args.bf16 else "no")
    live = place(FrozenTeacher(teacher.to(memory_format=torch.channels_last)), accelerator)
    rows = range(0, len(train), benchmark.batch_size)
    ready = [train[i : i + benchmark.batch_size]["pixel_values"].to(accelerator.device) for i in rows]

    def bare() -> None:
        for images in ready:
            live(pixel_values=images)

    def scanned() -> None:
        scan(live, train, batch_size=benchmark.batch_size, accelerator=accelerator, progress_bar=False)

    times: dict[str, list[float]] = {"bare forward": [], "scan": []}
    bare()
    for _ in range(benchmark.rounds):
        times["bare forward"].append(seconds(bare))
        times["scan"].append(seconds(scanned))
    share = 1 / ratio(times, "scan", "bare forward")
    lines = [
        (name, f"{len(train) / min(turns):,.0f}", f"{min(times['bare forward']) / min(turns):.3f}")
        for name, turns in times.items()
    ]
    print(table(("", "images/s", f"of the bare forward (≥ {TARGET})"), lines))
    write(benchmark.json, times=times, share=share, settings=vars(benchmark), bf16=args.bf16)


if __name__ == "__main__":
    main()
