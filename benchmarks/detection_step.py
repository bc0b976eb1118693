"""A distillation step of a detector, compared with torchvision's training step plus a forward pass of the teacher.

    OMP_NUM_THREADS=1 python benchmarks/detection_step.py --rounds 2

The same student on the same random images and boxes, alternately:
- bare: torchvision's own losses, backward, SGD; and the teacher's transform, backbone, region pooling and head on as
  many random proposals as the student samples, without gradient.
- hfkd: the whole step of DistillationTrainer with EA-KD.
On a CPU, seconds are processor time. The fastest turn of each loop counts, with its median step.
"""

import argparse
import tempfile
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from turns import WARM_UP, Clock, in_child, on_one_gpu, ratio, table, take_turns, write

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data.boxes import BoxCollator
from hfkd.models.detection import detector
from hfkd.models.regions import targets_of, unpadded
from hfkd.utils.cpu_memory import keep_freed_memory

CLASSES = 91
BARE, OURS = "torchvision's step and a bare teacher", "hfkd"
TARGET = 1.1  # at most, times the bare loop's time


class Images(Dataset):
    """A few images of two sizes with five boxes each, repeated."""

    def __init__(self, rows: int, size: int) -> None:
        g = torch.Generator().manual_seed(0)
        self.rows, self.made = rows, []
        for k in range(8):
            height, width = (size, size * 4 // 3) if k % 2 else (size, size * 5 // 4)
            corner = torch.rand(5, 2, generator=g) * size / 2
            boxes = torch.cat([corner, corner + 8 + torch.rand(5, 2, generator=g) * size / 3], 1)
            labels = torch.randint(1, CLASSES, (5,), generator=g)
            self.made.append(
                {"pixel_values": torch.rand(3, height, width, generator=g), "boxes": boxes, "labels": labels}
            )

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> dict[str, object]:
        return self.made[i % len(self.made)]


def networks(flags: argparse.Namespace) -> list[Any]:
    sizes = {"min_size": flags.size, "max_size": 2 * flags.size, "proposals": flags.proposals}
    torch.manual_seed(0)
    small = {"fpn_channels": flags.fpn_channels, "head_size": flags.head_size}
    return [detector(name, CLASSES, **sizes, **small) for name in (flags.student_name, flags.teacher_name)]


@torch.no_grad()
def taught(teacher: Any, images: list[Tensor], proposals: list[Tensor]) -> Tensor:
    given, _ = teacher.transform(images)
    heads = teacher.roi_heads
    pooled = heads.box_roi_pool(teacher.backbone(given.tensors), proposals, given.image_sizes)
    return heads.box_predictor(heads.box_head(pooled))[0]


def bare(flags: argparse.Namespace) -> list[float]:
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student, teacher = (one.to(device, memory_format=torch.channels_last) for one in networks(flags))
    optimizer, clock = torch.optim.SGD(student.parameters(), 1e-6), Clock(flags.steps, cpu_time=True)
    rows = Images(flags.steps * flags.batch_size, flags.size)
    student.train()
    for batch in DataLoader(rows, flags.batch_size, collate_fn=BoxCollator()):
        batch = {name: value.to(device) for name, value in batch.items()}
        images = unpadded(batch)
        loss = sum(student(images, targets_of(batch)).values())
        corner = torch.rand(len(images), flags.proposals, 2, device=device) * flags.size / 2
        proposals = list(torch.cat([corner, corner + flags.size / 4], -1))
        taught(teacher, images, proposals)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        clock.tick()
    return clock.seconds


def ours(flags: argparse.Namespace) -> list[float]:
    student, teacher = networks(flags)
    clock = Clock(flags.steps, cpu_time=True)
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationArguments(
            folder,
            per_device_train_batch_size=flags.batch_size,
            max_steps=flags.steps,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            optim="sgd",
            temperature="1.0",
            weighting="entropy(temperature=4, level='item')",
            ce_weight=1.0,
            kd_weight=1.0,
            max_grad_norm=0.0,
            bf16=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        rows = Images(flags.steps * flags.batch_size, flags.size)
        DistillationTrainer(student, teacher, on_one_gpu(args), train_dataset=rows, callbacks=[clock]).train()
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher_name", default="resnet50")
    parser.add_argument("--student_name", default="resnet18")
    parser.add_argument("--fpn_channels", type=int, default=64)
    parser.add_argument("--head_size", type=int, default=256)
    parser.add_argument("--size", type=int, default=192, help="the shorter side of an image")
    parser.add_argument("--proposals", type=int, default=128, help="of an image")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15, help=f"of a turn; the first {WARM_UP} are not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="one round of eight steps")
    flags = parser.parse_args()
    if flags.quick:
        flags.steps, flags.rounds = 8, 1
    loops = {name: partial(in_child, partial(loop, flags)) for name, loop in ((BARE, bare), (OURS, ours))}
    times = take_turns(loops, flags.rounds)
    rows = [[name, f"{1e3 * min(turns):.1f}", f"{ratio(times, name, BARE):.3f}"] for name, turns in times.items()]
    print(table(["step", "ms", f"bare = 1 (at most {TARGET})"], rows))
    write(flags.json, seconds=times, flags=vars(flags), target=TARGET)


if __name__ == "__main__":
    main()
