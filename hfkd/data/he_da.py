"""HE-DA: mixed images added to a training set, made of those that the teacher is least sure about.

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
MIXED = "mixed"  # column: which of the selected images an added row starts from, -1 for the rows of the data set
WORD = (1 << 64) - 1


def count_of(images: int, ratio: float) -> int:
    """K = floor(N r). ValueError where it is 0, or r is outside (0, 1]."""
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio={ratio} must be in (0, 1]: it is the share of the training images that are selected")
    count = floor_of_share(images, ratio)
    if count < 1:
        raise ValueError(f"ratio={ratio} of {images} images is less than one: use more data or a larger ratio")
    return count


def select_by_energy(energies: Tensor, ratio: float, side: Side = "high") -> Tensor:
    """Rows [K], ascending, of the floor(N r) images of highest energy [N], of lowest, or half of either ("both").

    High energy is an uncertain teacher: E = -T_E logsumexp(z / T_E). Among equals the later row counts as higher.
    """
    count = count_of(len(energies), ratio)
    if side not in get_args(Side):
        raise ValueError(f"side={side!r} must be one of {list(get_args(Side))}")
    if not torch.isfinite(energies).all():
        raise ValueError("the energies hold NaN or infinity: the teacher's logits are broken")
    if count < len(energies) and energies.min() == energies.max():
        raise ValueError(
            f"all {len(energies)} images have the energy {energies[0].item():g}, so none is more uncertain than "
            "another: check the teacher's checkpoint"
        )
    order = energies.argsort(stable=True)
    low = {"high": 0, "low": count, "both": count // 2}[side]
    chosen = torch.cat([order[:low], order[len(order) - (count - low) :]])
    return chosen.sort().values


@dataclass
class HighEnergyTransform(ImageEpochTransform):
    """`plain` for the rows of the data set; added rows are CutMix or MixUp of two selected images' `plain` views.

    Partner (another of `selected`), lambda and box are drawn from (seed, epoch, index) alone. Labels are vectors [B, C]
    that sum to 1, one-hot for plain rows; `view` is -1 for mixed rows, which nobody can number.
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
        # Never the image itself: a step of 1 to K - 1 through the selected ones.
        steps = [1 + int(draw.integers(max(len(self.selected) - 1, 1))) for draw in draws]
        partners = self.selected[[(places[b] + s) % len(self.selected) for b, s in zip(rows, steps, strict=True)]]
        partners["index"] = [_partner_index(batch["index"][b]) for b in rows]
        other = self.plain(partners)
        mixed, own = mix_images(self.mix, result["pixel_values"][rows], other["pixel_values"], draws)
        result["pixel_values"][rows] = mixed
        theirs = F.one_hot(other["labels"], self.num_classes).float()
        result["labels"][rows] = own[:, None] * result["labels"][rows] + (1 - own)[:, None] * theirs
        result["view"][rows] = -1
        return result

    def _draw(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed & WORD, int(self.epoch), index & WORD))


def _partner_index(index: int) -> int:
    """A number for the partner's view that no row has, so that it is drawn apart from every other view."""
    return -1 - index


def add_high_energy(
    dataset: Dataset,
    energies: Tensor,
    ratio: float = 0.4,
    mix: Mix = "cutmix",
    side: Side = "high",
    seed: int = 0,
) -> Dataset:
    """HE-DA (Kim et al., Knowledge-Based Systems 296, 2024): the data set and floor(N r) mixed images.

    `energies` [N] are the teacher's for the rows of `dataset` without augmentation, as `scan(teacher, dataset,
    views="clean").energy` gives them. Each selected image starts one added row, and is mixed anew in every epoch with
    another selected image: CutMix with alpha = 1, MixUp with alpha = 0.2. The added rows follow those of the data set
    and have an `index` of their own; in the column `mixed` they say which selected image they start from, the others
    say -1. A teacher scan sees `original_images` alone, so thresholds stay those of the training set.
    The paper adds 20 to 50 % of the data; its released code mixes within the batch instead (`HighEnergyForward`).
    Raises ValueError for a data set without one of our transforms, energies of another length, a bad ratio.
    """
    plain = image_transform(dataset)
    if plain is None:
        raise ValueError("HE-DA mixes images of hfkd.data.load_images with an ImageTransform: give such a dataset")
    if isinstance(plain, HighEnergyTransform):
        raise ValueError("HE-DA images have been added to this dataset already: give the one without them")
    if len(energies) != len(dataset):
        raise ValueError(f"{len(energies)} energies for {len(dataset)} images: scan this very dataset")
    rows = select_by_energy(energies, ratio, side).numpy()
    stored = dataset.with_format(None)
    transform = HighEnergyTransform(plain, stored.select(rows), num_labels(dataset), mix, seed)
    # Columns first and rows second: the pixels are referred to, not copied.
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
    """The rows of a data set that `add_high_energy` did not add, with their own transform; another one as it is."""
    transform = image_transform(dataset)
    if not isinstance(transform, HighEnergyTransform):
        return dataset
    rows = np.flatnonzero(np.asarray(dataset.with_format("numpy")[MIXED][:]) < 0)
    return dataset.select(rows).with_format(None).remove_columns(MIXED).with_transform(transform.plain)
