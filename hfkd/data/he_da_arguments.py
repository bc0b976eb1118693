"""The flags of HE-DA."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from hfkd.data.he_da import Side
from hfkd.data.mixing import Mix
from hfkd.utils.flags import flag

Variant = Literal["none", "paper", "released"]


@dataclass
class HighEnergyArguments:
    """HE-DA (Kim et al., Knowledge-Based Systems 296, 2024): augmentation of the images of highest energy only."""

    he_da: Variant = flag(
        "none",
        "HE-DA. paper: add mixed images of highest energy to the training set. released: as in the "
        "authors' code, mix those of each batch with each other, for the distillation term only.",
    )
    he_da_ratio: float = flag(0.4, "HE-DA: share of the training images that are selected.")
    he_da_mix: Mix = flag("cutmix", "HE-DA: cutmix (alpha 1) or mixup (alpha 0.2).")
    he_da_side: Side = flag("high", "HE-DA: images of highest energy, lowest energy, or both (half of each).")

    def check_high_energy(self) -> None:
        """Raise ValueError for invalid settings of HE-DA."""
        choices = {"he_da": Variant, "he_da_mix": Mix, "he_da_side": Side}
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {list(get_args(choice))}")
        if not 0 < self.he_da_ratio <= 1:
            raise ValueError(
                f"he_da_ratio={self.he_da_ratio} must be in (0, 1], as it is a share of the training images"
            )
        if self.he_da == "released" and self.he_da_side != "high":
            raise ValueError(
                f"he_da_side={self.he_da_side!r}, but he_da='released' mixes images of high energy only: set "
                "he_da_side='high'"
            )

    @property
    def high_energy(self) -> dict[str, Any]:
        """The settings by name; empty if HE-DA is off."""
        names = ("he_da", "he_da_ratio", "he_da_mix", "he_da_side")
        return {} if self.he_da == "none" else {name: getattr(self, name) for name in names}
