"""HE-DA in training: additional rows, as in the paper, or a second forward pass of each batch, as in its code.

B images of a batch, M mixed ones, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from hfkd.arguments import DistillationArguments
from hfkd.data.epochs import image_transform
from hfkd.data.he_da import HighEnergyTransform, add_high_energy, count_of, original_images
from hfkd.data.he_da_arguments import HighEnergyArguments
from hfkd.data.mixing import ALPHAS, Mix, box, cutmix, mixup
from hfkd.losses.base import requirements_of, with_settings
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
    """HE-DA as in the authors' code: the batch, and a second pass on its high-energy images, mixed with each other.

        L = 0.1 CE(x) + 0.9 KD(x) + 0.9 KD(x'),   KD(x') over the M images of S = {x_0, x_1} u {x_n : E_n > E_high}

    x' pairs S with a permutation of itself, with one lambda and one box per batch; both networks run on it again,
    without labels: the mixed term is `KD` for any objective, with the loss's temperature, weighting and kd_weight. With
    gradient accumulation the mean of each batch is weighted by its share of the images. E_n is that of the current
    view. The indices of S are copied from the device at every step. `inner` computes the items.
    """

    inner: DenseForward
    threshold: float
    mix: Mix = "cutmix"

    def __post_init__(self) -> None:
        loss = self.inner.loss
        self.unlabelled = DistillationLoss(KD(), loss.temperature, loss.weighting, 0.0, loss.kd_weight)

    def __call__(self, student: nn.Module, teacher: Teacher | None, batch: MicroBatch) -> Step:
        self.unlabelled.kd_weight = self.inner.loss.kd_weight  # which may change in training
        if not self.unlabelled.kd_weight:
            return self.inner(student, teacher, batch)
        inputs = batch.inputs
        items = self.inner.items(student, teacher, batch)
        loss, parts = self.inner.loss(items, batch.num_items)
        high = items.teacher.energy(ENERGY_TEMPERATURE) > self.threshold  # [B]
        chosen = high.index_fill(0, torch.arange(min(ALWAYS, len(high)), device=high.device), True).nonzero().squeeze(1)
        none = torch.zeros(len(chosen), items.teacher.num_classes, device=high.device)  # zeros: no label
        again = {"pixel_values": self.mixed(inputs["pixel_values"][chosen]), "labels": none}
        index = inputs["index"][chosen] if "index" in inputs else chosen
        again |= {"index": index, "view": torch.full_like(chosen, -1)}
        mixed = self.inner.items(student, teacher, replace(batch, inputs=again))
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
        """Show both forward passes to the watch; a non-finite mixed image is reported as the row of its first image."""
        if self.inner.watch is not None:
            student, teacher = (
                torch.cat([getattr(of, name).logits for of in (items, mixed)]) for name in ("student", "teacher")
            )
            self.inner.watch.outputs(student, teacher, torch.cat([items.sample, chosen]))

    def mixed(self, images: Tensor) -> Tensor:
        """[M, 3, H, W] -> each image mixed with one of the M. Draws from torch's CPU generator."""
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
    """Step and training set with HE-DA applied; unchanged if `args.he_da` is off or already applied.

    `scan(views=...)` provides the teacher's energies: those of clean images select the images to add ('paper'); those
    of training views give the threshold E_high above which floor(N r) images are ('released',
    `hfkd.losses.thresholds`). Raises ValueError for a ratio that selects no image, or all of them.
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


def without_he_da(step: Any) -> Any:
    """The forward pass before `with_he_da`, whose threshold is one of a teacher's weights and rows."""
    return step.inner if isinstance(step, HighEnergyForward) else step


def added_images(args: HighEnergyArguments, dataset: Any) -> dict[str, int]:
    """The number of images that HE-DA's paper variant adds, or has added, to `dataset`, by name."""
    if args.he_da != "paper" or dataset is None:
        return {}
    return {"he_da_added_images": count_of(len(original_images(dataset)), args.he_da_ratio)}


def refuse_he_da(args: HighEnergyArguments, step: Any, dataset: Any) -> None:
    """Raise ValueError if HE-DA is on without images to mix, or without a teacher to select them."""
    if args.he_da == "none":
        return
    if not isinstance(step, DenseForward) or not step.task.mixes:
        raise ValueError(
            f"he_da={args.he_da!r} mixes images, and the task is not image classification: leave he_da out"
        )
    if not step.loss.kd_weight:
        raise ValueError(
            f"he_da={args.he_da!r} selects images by the teacher's energies, and kd_weight=0 does "
            "not use the teacher: set kd_weight above 0, or leave he_da out"
        )
    needs = step.loss.requirements
    if args.he_da == "paper" and (needs.rows or needs.index):
        slot = next(slot for slot in step.loss.slots if requirements_of(slot).rows or requirements_of(slot).index)
        raise ValueError(
            f"he_da='paper' adds mixed images to the training set, and {with_settings(slot)} is made for the rows "
            "before these are added: set he_da='released', or leave it out"
        )
    if args.he_da == "paper" or dataset is None or isinstance(dataset, IterableDataset):
        return
    if isinstance(image_transform(dataset), HighEnergyTransform):
        raise ValueError(
            "he_da='released' mixes images within a batch, and this dataset already contains added "
            "mixed images: use one of the two"
        )
    row = dataset[0]
    if also := sorted(name for name in row if name != "pixel_values" and step.call.takes(name)):
        raise ValueError(f"he_da='released' mixes pixel_values only, and the student takes {also} too: leave he_da out")
    if row["pixel_values"].ndim != 3:
        raise ValueError("he_da='released' needs one view of each image: use he_da='paper' for several views")
