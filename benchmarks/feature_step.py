"""What a step costs with each objective on features, beside `kd` on the same networks and images.

    OMP_NUM_THREADS=1 python benchmarks/feature_step.py --rounds 2

The whole step of DistillationTrainer, student, teacher and backward included, on random images and weights, which cost
the same. The objectives take turns. On a CPU the seconds are this process' own processor time, which other processes on
the machine hardly change: use one thread. Of each objective the fastest turn counts, of which the median step.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.data import Dataset
from turns import WARM_UP, Clock, on_one_gpu, ratio, table, take_turns, write

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.models import image_classifier, with_projector

CLASSES = 100
OBJECTIVES = (
    *("kd", "fitnet", "at", "pkt", "rkd", "sp", "nst", "vid", "ofd", "reviewkd", "catkd"),
    *("crd(sampling='other_images')", "kd + fcfd", "lsh(bias='zero')"),
)


class Images(Dataset):
    """As many rows as CRD is to have memories for; a few images, again and again."""

    def __init__(self, rows: int) -> None:
        self.rows, self.images = rows, torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> dict[str, object]:
        return {"pixel_values": self.images[i % len(self.images)], "labels": i % CLASSES, "index": i}


def seconds(flags: argparse.Namespace, objective: str, weighting: str = "uniform") -> list[float]:
    """Of each counted step."""
    torch.manual_seed(0)
    student, teacher = (image_classifier(name, CLASSES) for name in (flags.student_name, flags.teacher_name))
    if objective.startswith("lsh"):
        student = with_projector(student, teacher.timm_model.num_features)
    clock = Clock(flags.steps, cpu_time=True)
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationArguments(
            folder,
            per_device_train_batch_size=flags.batch_size,
            max_steps=flags.steps,
            ce_weight=1.0,
            kd_weight=1e-6,  # costs as much as any, and no weights run away
            bf16=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        slots = {"objective": objective, "weighting": weighting}
        data = {"train_dataset": Images(flags.rows), "callbacks": [clock]}
        DistillationTrainer(student, teacher, on_one_gpu(args), **slots, **data).train()
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher_name", default="cifar_wrn_16_2")
    parser.add_argument("--student_name", default="cifar_resnet8")
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES, help="kd is always there")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rows", type=int, default=3200, help="of the training set: CRD's memories")
    parser.add_argument("--steps", type=int, default=15, help=f"of a turn; the first {WARM_UP} are not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="kd and ReviewKD, one round of eight steps")
    flags = parser.parse_args()
    if flags.quick:
        flags.objectives, flags.steps, flags.rounds = ("kd", "reviewkd"), 8, 1
    loops: dict[str, Callable[[], list[float]]] = {
        name: partial(seconds, flags, name) for name in dict.fromkeys(("kd", *flags.objectives))
    }
    loops |= {f"EA-{name}": partial(seconds, flags, name, "entropy") for name in ("reviewkd",) if name in loops}
    loops["kd again"] = partial(seconds, flags, "kd")
    times = take_turns(loops, flags.rounds)
    rows = [[name, f"{1e3 * min(turns):.1f}", f"{ratio(times, name, 'kd'):.2f}"] for name, turns in times.items()]
    print(table(["objective", "ms a step", "kd = 1"], rows))
    write(flags.json, seconds=times, flags=vars(flags))


if __name__ == "__main__":
    main()
