"""HE-DA in training: more rows, as the paper says, or a second forward of each batch, as its released code does.

B images of a batch, M mixed ones, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from hfkd.arguments import DistillationArguments
from hfkd.data.epochs import image_transform
from hfkd.data.he_da import HighEnergyTransform, add_high_energy, count_of, original_images
from hfkd.data.he_da_arguments import HighEnergyArguments
from hfkd.data.mixing import ALPHAS, Mix, box, cutmix, mixup
from hfkd.losses.counts import Counts
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import Items
from hfkd.losses.logits import KD
from hfkd.losses.thresholds import above, check_parts, ordered
from hfkd.teachers import Teacher, TeacherScan
from hfkd.training.forward.dense import DenseForward
from hfkd.training.forward.micro_batch import MicroBatch, Step

ENERGY_TEMPERATURE = 4.0  # T_E of the released code
ALWAYS = 2  # the first images of a batch are mixed whatever their energy


@dataclass
class HighEnergyForward:
    """HE-DA as the authors released it: the batch, and again its images of highest energy, mixed among themselves.

        L = 0.1 CE(x) + 0.9 KD(x) + 0.9 KD(x'),   KD(x') over the M images of S = {x_0, x_1} u {x_n : E_n > E_high}

    x' pairs S with a permutation of itself, under one lambda and one box a batch; both networks run on it anew, and no
    label enters: the mixed term is `KD` whatever the objective, with the loss's temperature, weighting and kd_weight.
    With accumulated batches each batch's mean counts by its share of the images. E_n is that of the view at hand. Which
    images are in S is read back from the device at every step. `inner` makes the items.
    """

    inner: DenseForward
    threshold: float
    mix: Mix = "cutmix"

    def __post_init__(self) -> None:
        loss = self.inner.loss
        self.unlabelled = DistillationLoss(KD(), loss.temperature, loss.weighting, 0.0, loss.kd_weight)

    def __call__(self, student: nn.Module, teacher: Teacher | None, batch: MicroBatch) -> Step:
        inputs = batch.inputs
        items = self.inner.items(student, teacher, inputs, batch.progress)
        loss, parts = self.inner.loss(items, batch.num_items)
        high = items.teacher.energy(ENERGY_TEMPERATURE) > self.threshold  # [B]
        chosen = high.index_fill(0, torch.arange(min(ALWAYS, len(high)), device=high.device), True).nonzero().squeeze(1)
        none = torch.zeros(len(chosen), items.teacher.num_classes, device=high.device)  # zeros: no label
        again = {"pixel_values": self.mixed(inputs["pixel_values"][chosen]), "labels": none}
        again |= {"index": chosen, "view": torch.full_like(chosen, -1)}
        mixed = self.inner.items(student, teacher, again, batch.progress)
        self._watch(items, mixed, chosen)
        # sum / (num_items M / B) = (B / num_items) · mean over the M
        counts = Counts.of(batch.num_items, len(items), len(items), items.num_samples)
        extra, extra_parts = self.unlabelled(mixed, counts.scaled(len(mixed), len(items)))
        share = torch.tensor(len(mixed) / len(items), device=loss.device)
        return (
            loss + extra,
            parts | {"mixed_kd": extra_parts["kd"], "mixed_share": share},
            self.inner.loss.counted(items),
        )

    def _watch(self, items: Items, mixed: Items, chosen: Tensor) -> None:
        """Show the watch both forwards; what breaks in a mixed image is its first image's row."""
        if self.inner.watch is not None:
            student, teacher = (
                torch.cat([getattr(of, name).logits for of in (items, mixed)]) for name in ("student", "teacher")
            )
            self.inner.watch.outputs(student, teacher, torch.cat([items.sample, chosen]))

    def mixed(self, images: Tensor) -> Tensor:
        """[M, 3, H, W], each mixed with another of the M or itself. Draws from torch's generator on the CPU."""
        partners = images[torch.randperm(len(images)).to(images.device)]
        share = torch.distributions.Beta(ALPHAS[self.mix], ALPHAS[self.mix]).sample()
        if self.mix == "mixup":
            return mixup(images, partners, share.to(images).expand(len(images)))
        height, width = images.shape[-2:]
        row, column = int(torch.randint(height, ())), int(torch.randint(width, ()))
        corners = torch.tensor(box(float(share), row, column, height, width), device=images.device)
        return cutmix(images, partners, corners.expand(len(images), -1))[0]


def with_he_da(
    args: DistillationArguments, step: Any, dataset: Any, scan: Callable[..., TeacherScan]
) -> tuple[Any, Any]:
    """The step and the training set that `args.he_da` makes of these; both as they are where it is off or done.

    `scan(views=...)` is asked for the teacher's energies: those of clean images choose the images to add, those of
    training views give the released threshold, E_high, beyond which floor(N r) images lie (`hfkd.losses.thresholds`).
    Raises ValueError for a ratio that takes no image, or all of them.
    """
    if args.he_da == "none" or isinstance(step, HighEnergyForward):
        return step, dataset
    if isinstance(image_transform(dataset), HighEnergyTransform):
        return step, dataset
    if args.he_da == "paper":
        energies = scan(views="clean", energy_temperature=ENERGY_TEMPERATURE).energy
        ratio, mix, side = args.he_da_ratio, args.he_da_mix, args.he_da_side
        return step, add_high_energy(dataset, energies, ratio, mix, side, args.seed_of_data)
    energies = ordered("he_da='released'", scan(energy_temperature=ENERGY_TEMPERATURE).energy)
    count = count_of(len(energies), args.he_da_ratio)
    if count == len(energies):
        raise ValueError(f"he_da_ratio={args.he_da_ratio} leaves no image below the threshold: lower it")
    threshold = above(energies, count)
    parts = {"above the threshold": (int((energies > threshold).sum()), count)}
    check_parts("he_da='released'", parts, len(energies))
    return HighEnergyForward(step, threshold, args.he_da_mix), dataset


def added_images(args: HighEnergyArguments, dataset: Any) -> dict[str, int]:
    """What HE-DA's paper variant costs, by name: how many images it adds to (or has added to) `dataset`."""
    if args.he_da != "paper" or dataset is None:
        return {}
    return {"he_da_added_images": count_of(len(original_images(dataset)), args.he_da_ratio)}


def refuse_he_da(args: HighEnergyArguments, step: Any, dataset: Any) -> None:
    """Raise ValueError where HE-DA is on and there are no images to mix, or no teacher to choose among them."""
    if args.he_da == "none":
        return
    if not isinstance(step, DenseForward) or not step.task.mixes:
        raise ValueError(f"he_da={args.he_da!r} mixes images, and the task is none of images: leave he_da out")
    if not step.loss.kd_weight:
        raise ValueError(f"he_da={args.he_da!r} takes the teacher's energies, and kd_weight=0 has no teacher: raise it")
    if args.he_da == "paper" or dataset is None or isinstance(dataset, IterableDataset):
        return
    if isinstance(image_transform(dataset), HighEnergyTransform):
        raise ValueError("he_da='released' mixes within a batch, and this dataset has mixed images added: choose one")
    row = dataset[0]
    if also := sorted(name for name in row if name != "pixel_values" and step.call.takes(name)):
        raise ValueError(f"he_da='released' mixes images, and the student takes {also} too: leave he_da out")
    if row["pixel_values"].ndim != 3:
        raise ValueError("he_da='released' mixes a batch with one view of each image: use he_da='paper' with several")
