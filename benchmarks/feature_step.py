"""The cost of a step with each objective on features, compared with `kd` on the same networks and images.

    OMP_NUM_THREADS=1 python benchmarks/feature_step.py --rounds 2

The whole step of DistillationTrainer, including student, teacher and backward pass, on random images and weights, which
have the same cost. The objectives run alternately. On a CPU, seconds are processor time, which hardly depends on other
processes: use one thread. The fastest turn of each objective counts, with its median step. The bare loop is ReviewKD
without a Trainer: the same networks, batches and optimizer, with explicit hooks, and the same loss on the captured
features. Memory is the peak of tensor bytes from the creation of the networks to the end of the second step, minus that
of kd: features, loss, connectors, memory banks, and their gradients and optimizer states (AdamW).
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from operations import Bytes
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback
from turns import WARM_UP, Clock, on_one_gpu, ratio, table, take_turns, write

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.losses.features import ReviewKD
from hfkd.losses.features.reviewkd import Review, hierarchical_context
from hfkd.models import image_classifier, with_projector
from hfkd.models.stages import expanded, tap_of
from hfkd.utils.cpu_memory import keep_freed_memory

CLASSES = 100
RATE, WEIGHT = 1e-3, 1e-6  # costs as much as any, and no weights run away
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BARE = "reviewkd, bare loop"
OBJECTIVES = (
    *("kd", "fitnet", "at", "pkt", "rkd", "sp", "nst", "vid", "ofd", "reviewkd", "catkd"),
    *("crd(sampling='other_images')", "kd + fcfd", "lsh(bias='zero')"),
)


class Images(Dataset):
    """As many rows as CRD needs memories for; a few images, repeated."""

    def __init__(self, rows: int) -> None:
        self.rows, self.images = rows, torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> dict[str, object]:
        return {"pixel_values": self.images[i % len(self.images)], "labels": i % CLASSES, "index": i}


def networks(flags: argparse.Namespace, objective: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    student, teacher = (image_classifier(name, CLASSES) for name in (flags.student_name, flags.teacher_name))
    if objective.startswith("lsh"):
        student = with_projector(student, teacher.timm_model.num_features)
    return student, teacher


def trained(
    flags: argparse.Namespace, objective: str, weighting: str, steps: int, *callbacks: TrainerCallback
) -> DistillationTrainer:
    student, teacher = networks(flags, objective)
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationArguments(
            folder,
            per_device_train_batch_size=flags.batch_size,
            max_steps=steps,
            learning_rate=RATE,
            ce_weight=1.0,
            kd_weight=WEIGHT,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            weight_decay=0.0,
            bf16=False,
            logging_steps=1 if steps < WARM_UP else 500,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        slots = {"objective": objective, "weighting": weighting}
        data = {"train_dataset": Images(flags.rows), "callbacks": list(callbacks)}
        trainer = DistillationTrainer(student, teacher, on_one_gpu(args), **slots, **data)
        trainer.train()
    return trainer


def seconds(flags: argparse.Namespace, objective: str, weighting: str = "uniform") -> list[float]:
    """Seconds of each counted step."""
    clock = Clock(flags.steps, cpu_time=True)
    trained(flags, objective, weighting, flags.steps, clock)
    return clock.seconds


def held(flags: argparse.Namespace, objective: str) -> tuple[int, int]:
    """The peak bytes of tensors, and the number of trainable parameters of the objective."""
    with Bytes() as counted:
        trainer = trained(flags, objective, "uniform", 2)
    return counted.peak, sum(p.numel() for p in trainer.distillation_loss.parameters() if p.requires_grad)


class Kept:
    """Captures inputs and outputs of modules with hooks, for the bare loop."""

    def __init__(self, network: nn.Module, keys: Sequence[str]) -> None:
        self.found: dict[str, torch.Tensor] = {}
        for key in keys:
            tap = tap_of(network, key)
            module = network.get_submodule(tap.path)
            if tap.input:
                module.register_forward_pre_hook(partial(self.keep_input, key))
            else:
                module.register_forward_hook(partial(self.keep_output, key))

    def keep_input(self, key: str, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.found[key] = args[0].clone() if key.startswith("pre:") else args[0]  # an in-place ReLU would overwrite it

    def keep_output(self, key: str, module: nn.Module, args: object, output: torch.Tensor) -> None:
        self.found[key] = output.clone() if key.startswith("pre:") else output


def bare_reviewkd(flags: argparse.Namespace, steps: int, losses: list[torch.Tensor] | None = None) -> list[float]:
    """ReviewKD without a Trainer: seconds of each counted step; appends the losses to `losses`."""
    keep_freed_memory()
    student, teacher = (network.to(DEVICE) for network in networks(flags, "reviewkd"))
    objective = ReviewKD()
    mine, theirs = (
        [one for several in expanded(network, keys).values() for one in several]
        for network, keys in ((student, objective.student_keys), (teacher, objective.teacher_keys))
    )
    of_student, of_teacher = Kept(student, mine), Kept(teacher, theirs)
    teacher.eval().requires_grad_(False)
    with torch.no_grad():
        for network in (student, teacher):
            network.eval()(torch.zeros(2, 3, 32, 32, device=DEVICE))
    widths = [[kept.found[k].shape[1] for k in keys] for kept, keys in ((of_student, mine), (of_teacher, theirs))]
    torch.manual_seed(42)
    review = Review(*widths).to(DEVICE)
    student.train()
    parameters = [*student.parameters(), *review.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.0, fused=True)
    clock = Clock(steps, cpu_time=True) if steps > WARM_UP + 1 else None
    loader = iter(DataLoader(Images(flags.rows), flags.batch_size, shuffle=True, drop_last=True))
    for _ in range(steps):
        batch = {key: value.to(DEVICE) for key, value in next(loader).items()}
        logits = student(batch["pixel_values"])
        logits = getattr(logits, "logits", logits)
        with torch.no_grad():
            teacher(batch["pixel_values"])
        levels = [[as_map(kept.found[k]) for k in keys] for kept, keys in ((of_student, mine), (of_teacher, theirs))]
        fused = review(levels[0], [x.shape[-2:] for x in levels[1]])
        distance = sum(hierarchical_context(s, t) for s, t in zip(fused, levels[1], strict=True))
        loss = F.cross_entropy(logits, batch["labels"]) + WEIGHT / 20 * distance.mean()  # in the first of 20 epochs
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if losses is not None:
            losses.append(loss.detach())
        if clock is not None:
            clock.tick()
    return [] if clock is None else clock.seconds


def as_map(x: torch.Tensor) -> torch.Tensor:
    return x if x.ndim == 4 else x[..., None, None]


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
    if "reviewkd" in loops:
        loops |= {BARE: partial(bare_reviewkd, flags, flags.steps)}
        loops |= {"EA-reviewkd": partial(seconds, flags, "reviewkd", "entropy")}
    loops["kd again"] = partial(seconds, flags, "kd")
    memory = {name: held(flags, name) for name in dict.fromkeys(("kd", *flags.objectives))}
    times = take_turns(loops, flags.rounds)
    rows = []
    for name, turns in times.items():
        extra, trained_ = (memory[name][0] - memory["kd"][0], memory[name][1]) if name in memory else (None, None)
        shown = ["", ""] if extra is None else [f"{extra / 1e6:.2f}", f"{trained_:,}"]
        rows.append([name, f"{1e3 * min(turns):.1f}", f"{ratio(times, name, 'kd'):.2f}", *shown])
    print(table(["objective", "ms a step", "kd = 1", "memory above kd's, MB", "parameters it trains"], rows))
    if BARE in times:
        print(f"\nReviewKD, trainer / bare loop: {ratio(times, 'reviewkd', BARE):.3f}")
    write(flags.json, seconds=times, memory=memory, flags=vars(flags))


if __name__ == "__main__":
    main()
