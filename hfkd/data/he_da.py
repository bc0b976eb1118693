"""HE-DA: adds mixed images to a training set, made from those that the teacher is least certain about.

N images, K selected ones, B rows of a batch, C classes.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from hfkd.data.columns import num_labels
from hfkd.data.epochs import ImageEpochTransform, Resizing, image_transform
from hfkd.data.mixing import Mix, mix_images
from hfkd.utils.numbers import floor_of_share

Side = Literal["high", "low", "both"]
MIXED = "mixed"  # column: the selected image from which an added row is made, -1 for original rows
WORD = (1 << 64) - 1


def count_of(images: int, ratio: float) -> int:
    """K = floor(N r). Raises ValueError if it is 0, or r is outside (0, 1]."""
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio={ratio} must be in (0, 1], as it is the share of selected training images")
    count = floor_of_share(images, ratio)
    if count < 1:
        raise ValueError(f"ratio={ratio} of {images} images is less than one: use more data or a larger ratio")
    return count


def select_by_energy(energies: Tensor, ratio: float, side: Side = "high") -> Tensor:
    """Row indices [K], ascending, of the floor(N r) images of highest or lowest energy, or half of each ("both").

    High energy means an uncertain teacher: E = -T_E logsumexp(z / T_E). Of equal energies, that of the later row counts
    as higher.
    """
    count = count_of(len(energies), ratio)
    if side not in get_args(Side):
        raise ValueError(f"side={side!r} must be one of {list(get_args(Side))}")
    if not torch.isfinite(energies).all():
        raise ValueError("the teacher's energies contain NaN or infinity: check the teacher's checkpoint")
    if count < len(energies) and energies.min() == energies.max():
        raise ValueError(
            f"all {len(energies)} images have the energy {energies[0].item():g}, so that none can be selected: check "
            "the teacher's checkpoint"
        )
    order = energies.argsort(stable=True)
    low = {"high": 0, "low": count, "both": count // 2}[side]
    chosen = torch.cat([order[:low], order[len(order) - (count - low) :]])
    return chosen.sort().values


@dataclass
class HighEnergyTransform(ImageEpochTransform):
    """`plain` for original rows; added rows are CutMix or MixUp of the `plain` views of two selected images.

    The partner (another of `selected`), lambda and the box are functions of (seed, epoch, index). Labels are vectors
    [B, C] that sum to 1, one-hot for original rows; `view` is -1 for mixed rows, whose views are not numbered.
    """

    plain: ImageEpochTransform
    selected: Dataset  # [K] rows, as stored
    num_classes: int
    mix: Mix = "cutmix"
    seed: int = 0

    def __post_init__(self) -> None:
        self.mean, self.std, self.epoch = self.plain.mean, self.plain.std, self.plain.epoch
        if self.mix not in get_args(Mix):
            raise ValueError(f"mix={self.mix!r} must be one of {list(get_args(Mix))}")

    @property
    def num_views(self) -> int:
        return self.plain.num_views

    @property
    def resizing(self) -> Resizing:
        return self.plain.resizing

    def clean(self) -> Self:
        return replace(self, plain=self.plain.clean())

    def one_view(self) -> Self:
        return replace(self, plain=self.plain.one_view())

    def at_epoch(self, epoch: int) -> Self:
        return replace(self, plain=self.plain.at_epoch(epoch))

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Tensor]:
        result = self.plain(batch)
        result["labels"] = F.one_hot(result["labels"], self.num_classes).float()  # [B, C]
        places = batch[MIXED]
        rows = [b for b, place in enumerate(places) if place >= 0]
        if not rows:
            return result
        draws = [self._draw(batch["index"][b]) for b in rows]
        # A step of 1 to K - 1 through the selected images, so that an image is never its own partner.
        steps = [1 + int(draw.integers(max(len(self.selected) - 1, 1))) for draw in draws]
        partners = self.selected[[(places[b] + s) % len(self.selected) for b, s in zip(rows, steps, strict=True)]]
        # Indices that no row has, so that the partners' views are independent of all others.
        partners["index"] = [-1 - batch["index"][b] for b in rows]
        other = self.plain(partners)
        mixed, own = mix_images(self.mix, result["pixel_values"][rows], other["pixel_values"], draws)
        result["pixel_values"][rows] = mixed
        theirs = F.one_hot(other["labels"], self.num_classes).float()
        result["labels"][rows] = own[:, None] * result["labels"][rows] + (1 - own)[:, None] * theirs
        result["view"][rows] = -1
        return result

    def _draw(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed & WORD, int(self.epoch), index & WORD))


def add_high_energy(
    dataset: Dataset,
    energies: Tensor,
    ratio: float = 0.4,
    mix: Mix = "cutmix",
    side: Side = "high",
    seed: int = 0,
) -> Dataset:
    """HE-DA (Kim et al., Knowledge-Based Systems 296, 2024): the dataset and floor(N r) mixed images.

    `energies` [N] are the teacher's for the rows of `dataset` without augmentation, as from `scan(teacher, dataset,
    views="clean").energy`. One row is added for each selected image, which is mixed in every epoch with another
    selected image: CutMix with alpha = 1, MixUp with alpha = 0.2. The added rows follow the original ones and have new
    values of `index`; their column `mixed` has the number of the selected image, and -1 in original rows. A teacher
    scan uses `original_images` only, so that thresholds are those of the training set. The paper adds 20 to 50 % of the
    data; its released code mixes within the batch instead (`HighEnergyForward`). Raises ValueError for a dataset
    without an image transform of hfkd, energies of another length, or an invalid ratio.
    """
    plain = image_transform(dataset)
    if plain is None:
        raise ValueError("HE-DA needs a dataset of hfkd.data.load_images with an ImageTransform: pass such a dataset")
    if isinstance(plain, HighEnergyTransform):
        raise ValueError("HE-DA images have been added to this dataset already: pass the dataset without them")
    if len(energies) != len(dataset):
        raise ValueError(f"{len(energies)} energies for {len(dataset)} images: scan the same dataset")
    rows = select_by_energy(energies, ratio, side).numpy()
    stored = dataset.with_format(None)
    transform = HighEnergyTransform(plain, stored.select(rows), num_labels(dataset), mix, seed)
    # Columns are added before rows are selected, so that the pixels are not copied.
    index = np.asarray(stored.with_format("numpy")["index"][:])
    ours = _with_columns(stored, index, np.full(len(stored), -1))
    places = np.full(len(stored), -1)
    places[rows] = np.arange(len(rows))
    theirs = _with_columns(stored, index + index.max() + 1, places)
    return concatenate_datasets([ours, theirs.select(rows)]).with_transform(transform)


def _with_columns(stored: Dataset, index: np.ndarray, places: np.ndarray) -> Dataset:
    feature, others = stored.features["index"], stored.remove_columns("index")
    return others.add_column("index", index, feature=feature).add_column(MIXED, places)


def original_images(dataset: Any) -> Any:
    """The original rows of a dataset of `add_high_energy`, with their transform; any other dataset unchanged."""
    transform = image_transform(dataset)
    if not isinstance(transform, HighEnergyTransform):
        return dataset
    rows = np.flatnonzero(np.asarray(dataset.with_format("numpy")[MIXED][:]) < 0)
    return dataset.select(rows).with_format(None).remove_columns(MIXED).with_transform(transform.plain)
