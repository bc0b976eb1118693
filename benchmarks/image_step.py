"""hfkd's training step compared with the loop of published code, and with a bare PyTorch loop.

    python benchmarks/image_step.py --dataset_name uoft-cs/cifar100 --teacher_checkpoint wrn_16_2.pth

Energy KD on the same images and networks, alternately:
- public loop: torchvision transforms on one PIL image at a time, two worker processes, float32, NCHW, eager; loss and
accuracies are copied to the host at every step. As in RepDistiller, mdistiller and their descendants.
- bare loop: the same precision, memory format, input pipeline and allocator's settings as hfkd, without Trainer.
- hfkd, live teacher; hfkd, warm cache: DistillationTrainer, without and with `teacher_cache_dir`.
Without a GPU each turn is a separate process. The results are the median step of each loop's fastest turn.
"""

import itertools
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback
from turns import WARM_UP, Clock, flops, in_child, matrix_rate, on_one_gpu, ratio, table, take_turns, write

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data import ImageDataArguments, num_labels
from hfkd.data.collate import ImageCollator
from hfkd.data.transforms import CIFAR_MEAN, CIFAR_STD, unpack_pixels
from hfkd.losses.temperatures import Energy
from hfkd.models import image_classifier, image_teacher
from hfkd.utils.cpu_memory import keep_freed_memory
from hfkd.utils.flags import flag
from hfkd.utils.parsing import parse

THRESHOLDS = (-21.0, -19.5)  # no scan here: any thresholds cost the same
PUBLIC, BARE, LIVE, CACHED = "public loop", "bare loop", "hfkd, live teacher", "hfkd, warm cache"
TARGETS = {LIVE: 2.4, CACHED: 3.2}  # at least, times the public loop's speed
BARE_TARGET = 1.05  # at most, times the bare loop's time, with a live teacher
MINUTES = {LIVE: 5.0, CACHED: 2.0}  # at most, of 240 epochs on an H200


@dataclass
class BenchmarkArguments:
    teacher_name: str = flag("cifar_wrn_16_2", "Teacher.")
    teacher_checkpoint: str | None = flag(None, "Weights of the teacher; random ones cost the same.")
    student_name: str = flag("cifar_resnet20", "Student.")
    batch_size: int = flag(64, "Images of a step.")
    rounds: int = flag(5, "Turns of each loop.")
    steps: int = flag(15, f"Steps of a turn; the first {WARM_UP} are not counted.")
    threads: int = flag(1, "CPU threads; one gives stable results on a shared machine.")
    json: str | None = flag(None, "Write the figures to this file.")
    quick: bool = flag(False, "One turn of twelve steps each.")

    def __post_init__(self) -> None:
        torch.set_num_threads(self.threads)
        if self.quick:
            self.rounds, self.steps = 1, 12


class PilImages(torch.utils.data.Dataset):
    """One image at a time, as torchvision's CIFAR100 with the usual transforms."""

    def __init__(self, dataset: Dataset) -> None:
        rows = dataset.with_format(None)
        self.images = unpack_pixels(rows["pixels"][:]).permute(0, 2, 3, 1).numpy()
        self.labels = rows["labels"][:]
        size = self.images.shape[1]
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(CIFAR_MEAN, CIFAR_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[row])), self.labels[row]


def energy_kd(logits: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
    energy = -4 * (taught / 4).logsumexp(-1)
    t = (4 + 2.0 * (energy < THRESHOLDS[0]) - 2.0 * (energy > THRESHOLDS[1])).unsqueeze(-1)
    kl = F.kl_div((logits / t).log_softmax(-1), (taught / t).log_softmax(-1), log_target=True, reduction="none")
    return 0.1 * F.cross_entropy(logits, labels) + 0.9 * (t * t * kl).sum(-1).mean()


@dataclass
class Loops:
    """A new student each turn, with the same teacher."""

    benchmark: BenchmarkArguments
    args: DistillationArguments
    train: Dataset
    pil: PilImages | None
    folder: str

    def __post_init__(self) -> None:
        self.classes = num_labels(self.train)
        self.teacher = teacher_network(self.benchmark.teacher_name, self.classes, self.benchmark.teacher_checkpoint)

    def networks(self, **to: Any) -> tuple[nn.Module, nn.Module]:
        set_seed(0)
        student = image_classifier(self.benchmark.student_name, self.classes).train()
        return student.to(self.args.device, **to), self.teacher.to(self.args.device, **to)

    def optimizer(self, student: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(student.parameters(), lr=self.args.learning_rate, momentum=0.9, weight_decay=5e-4)

    def public(self) -> list[float]:
        student, teacher = self.networks(memory_format=torch.contiguous_format)
        optimizer, clock, device = self.optimizer(student), Clock(self.benchmark.steps), self.args.device
        loader = DataLoader(self.pil, self.benchmark.batch_size, shuffle=True, num_workers=2)
        for images, labels in itertools.islice(loader, self.benchmark.steps):
            images, labels = images.to(device), labels.to(device)
            logits = student(images).logits
            with torch.no_grad():
                taught = teacher(images).logits
            loss = energy_kd(logits, taught, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            hits = logits.topk(5, dim=1).indices == labels[:, None]
            _ = loss.item(), hits[:, :1].sum().item(), hits.sum().item()  # as the meters of these loops do
            clock.tick()
        return clock.seconds

    def bare(self) -> list[float]:
        keep_freed_memory()
        student, teacher = self.networks(memory_format=torch.channels_last)
        optimizer, clock, device = self.optimizer(student), Clock(self.benchmark.steps), self.args.device
        loader = DataLoader(self.train, self.benchmark.batch_size, shuffle=True, collate_fn=ImageCollator())
        for batch in itertools.islice(loader, self.benchmark.steps):
            images = batch["pixel_values"].to(device).contiguous(memory_format=torch.channels_last)
            labels = batch["labels"].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bool(self.args.bf16)):
                logits = student(images).logits.float()
                with torch.no_grad():
                    taught = teacher(images).logits.float()
            energy_kd(logits, taught, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            clock.tick()
        return clock.seconds

    def hfkd(self, cache: str | None = None) -> list[float]:
        student, teacher = self.networks()
        clock = Clock(self.benchmark.steps)
        self.args.teacher_cache_dir = cache
        temperature = Energy(thresholds=THRESHOLDS)
        trainer = DistillationTrainer(
            student, teacher, self.args, train_dataset=self.train, temperature=temperature, callbacks=[clock]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return clock.seconds

    def cached(self) -> list[float]:
        """The first call fills the cache: every turn has the same views."""
        return self.hfkd(f"{self.folder}/logits")

    def flops(self) -> int:
        student, teacher = self.networks(memory_format=torch.channels_last)
        images = torch.zeros(self.benchmark.batch_size, 3, 32, 32, device=self.args.device)
        with torch.no_grad():
            taught = flops(lambda: teacher(images))
        return taught + flops(lambda: student(images).logits.sum().backward())


def teacher_network(name: str, classes: int, checkpoint: str | None) -> nn.Module:
    return image_teacher(name, classes, checkpoint) if checkpoint else image_classifier(name, classes)


def training_arguments(given: DistillationArguments, steps: int, batch_size: int) -> DistillationArguments:
    args = DistillationArguments(
        output_dir=given.output_dir,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=0.05,
        optim="sgd",
        optim_args="momentum=0.9",
        weight_decay=5e-4,
        decay_bias_and_norm=True,
        max_grad_norm=0.0,
        bf16=given.bf16,
        use_cpu=given.use_cpu,
        torch_compile=given.torch_compile,
        torch_compile_mode=given.torch_compile_mode,
        dataloader_drop_last=True,  # steps of one size
        dataloader_pin_memory=torch.cuda.is_available() and not given.use_cpu,
        save_strategy="no",
        logging_steps=500,
        disable_tqdm=True,
        report_to="none",
    )
    return on_one_gpu(args)


def main() -> None:
    benchmark, data, given = parse((BenchmarkArguments, ImageDataArguments, DistillationArguments), description=__doc__)
    train, _ = data.load()
    with tempfile.TemporaryDirectory() as folder:
        given.output_dir = folder
        args = training_arguments(given, benchmark.steps, benchmark.batch_size)
        loops = Loops(benchmark, args, train, PilImages(train), folder)
        in_child(loops.cached)
        ways = {PUBLIC: loops.public, BARE: loops.bare, LIVE: loops.hfkd, CACHED: loops.cached}
        times = take_turns({name: partial(in_child, loop) for name, loop in ways.items()}, benchmark.rounds)
        work = loops.flops()
    device, dtype = loops.args.device, torch.bfloat16 if loops.args.bf16 else torch.float32
    rate = matrix_rate(device, dtype)
    rows = []
    for name in times:
        seconds = min(times[name])
        epochs = 240 * len(train) / benchmark.batch_size * seconds
        share = work / seconds / rate if name == LIVE else None
        faster = 1 / ratio(times, name, PUBLIC)
        target = f" (≥ {TARGETS[name]})" if name in TARGETS else ""
        rows.append(
            (
                name,
                f"{1000 * seconds:.1f}",
                f"{benchmark.batch_size / seconds:,.0f}",
                f"{faster:.2f}{target}",
                f"{ratio(times, name, BARE):.3f}" + (f" (≤ {BARE_TARGET})" if name == LIVE else ""),
                f"{epochs / 3600:.1f} h",
                "-" if share is None else f"{share:.1%}",
            )
        )
    header = ("loop", "ms a step", "images/s", "× public loop", "time / bare", "240 epochs", "of matrix rate")
    print(table(header, rows))
    print(f"\n{work / 1e9:.1f} GFLOP a step; a {dtype} matrix product on {device} runs at {rate / 1e9:,.0f} GFLOP/s")
    what = {"device": str(device), "images": len(train), "settings": vars(benchmark), "bf16": loops.args.bf16}
    write(benchmark.json, times=times, flops=work, matrix_rate=rate, **what)


if __name__ == "__main__":
    main()
