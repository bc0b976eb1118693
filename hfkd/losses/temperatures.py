"""Temperatures: the softmax temperature of each item. `Items -> T [N]`.

N items. Thresholds that depend on the whole training set are fitted once by a teacher scan (`Fitted`).
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hfkd.losses.base import Requirements, Temperature
from hfkd.losses.items import Items
from hfkd.losses.registry import TEMPERATURES, register_temperature
from hfkd.losses.thresholds import above, below, check_parts, count_of_share, ordered
from hfkd.utils.argument_types import NotNegative, SoftmaxTemperature, checked, fitting
from hfkd.utils.devices import constant
from hfkd.utils.slots import resolve

Level = Literal["sample", "item"]
USUAL, OF_LANGUAGE = 4.0, 1.0  # default softmax temperatures: for CIFAR-100, and for language models


class Fitted(Temperature):
    """A temperature that is fitted to the teacher's energies on the whole training set before the first step."""

    energy_temperature: float
    level: Level = "sample"

    @property
    @abstractmethod
    def thresholds_or_none(self) -> tuple[float, ...] | None:
        """The fitted thresholds as plain numbers, which are saved in checkpoints; None before fitting."""

    @abstractmethod
    def fit(self, energies: Tensor) -> None:
        """Set the thresholds from the energies of all training samples, or of all items with `level="item"` (of very
        many, a part that is spread over the training set).
        """

    @abstractmethod
    def restore(self, thresholds: tuple[float, ...]) -> None:
        """Set the thresholds of an earlier fit."""


@register_temperature("constant")
@checked
@dataclass
class Constant(Temperature):
    """T_n = T for every item: Hinton's distillation (T = 4 on CIFAR-100)."""

    temperature: SoftmaxTemperature = 4.0

    @property
    def choices(self) -> tuple[float, ...]:
        """All temperatures that may be returned, ascending."""
        return (float(self.temperature),)

    def requirements(self) -> Requirements:
        return Requirements(within_samples=True, signals=True)

    def __call__(self, items: Items) -> Tensor:
        return torch.full((len(items),), float(self.temperature), device=items.sample.device)


@register_temperature("energy")
@checked
@dataclass
class Energy(Fitted):
    """Energy KD (Kim et al., Knowledge-Based Systems 296, 2024, Eq. 9): the temperature follows the teacher's energy.

        T_n = T + T_increase  if E_n < E_low      (confident teacher: soften more)
              T - T_decrease  if E_n > E_high     (uncertain teacher: soften less)
              T               otherwise

    E_low and E_high lie midway between the energies of two training items, with floor(N r) items outside on each side
    (fewer where several items have the energy at the boundary: these stay inside); `thresholds=(low, high)` skips the
    fit. The group of an item is decided in every step from the energy of its current view. `increase=0` and
    `decrease=0` are the one-sided ablations. The authors' released code swaps the two temperatures:
    `direction="released"`. The paper does not state T_E; 4 is that of the released code. `level="item"` decides per
    token instead of per sequence. Raises ValueError for a ratio outside (0, 0.5] or a temperature that would reach 0.
    """

    ratio: float = 0.2
    thresholds: tuple[float, float] | None = None
    temperature: SoftmaxTemperature = 4.0
    increase: NotNegative = 2.0
    decrease: NotNegative = 2.0
    energy_temperature: SoftmaxTemperature = 4.0
    direction: Literal["paper", "released"] = "paper"
    level: Level = "sample"

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 0.5:
            raise ValueError(
                f"Energy: ratio={self.ratio} must be in (0, 0.5], as it is the share of the training set on each side"
            )
        fitting("Energy", "temperature - decrease", self.temperature - self.decrease, SoftmaxTemperature)
        fitting("Energy", "temperature + increase", self.temperature + self.increase, SoftmaxTemperature)
        if self.thresholds is None:
            return
        if self.thresholds[0] > self.thresholds[1]:
            raise ValueError(
                f"Energy: thresholds={self.thresholds!r} must be (low, high), where a low energy is that of a "
                "confident teacher: swap them"
            )
        self.restore(self.thresholds)

    @property
    def thresholds_or_none(self) -> tuple[float, ...] | None:
        return self.thresholds

    def fit(self, energies: Tensor) -> None:
        energies = ordered("Energy", energies)
        count = count_of_share("Energy", len(energies), self.ratio)
        low, high = below(energies, count), above(energies, count)
        outside = {"below the lower threshold": energies < low, "above the upper threshold": energies > high}
        sides = zip(outside.items(), (self.increase, self.decrease), strict=True)  # a step of 0 switches a side off
        parts = {name: (int(items.sum()), count) for (name, items), step in sides if step}
        check_parts("Energy", parts, len(energies))
        self.thresholds = (min(low, high), high)

    def restore(self, thresholds: tuple[float, ...]) -> None:
        low, high = fitting("Energy", "thresholds", thresholds, tuple[float, float])
        self.thresholds = (float(low), float(high))

    @property
    def choices(self) -> tuple[float, ...]:
        """All temperatures that may be returned, ascending."""
        up, down = self._steps
        return tuple(sorted({self.temperature - down, float(self.temperature), self.temperature + up}))

    @property
    def _steps(self) -> tuple[float, float]:
        """What is added to T below the lower threshold, and subtracted from it above the upper one."""
        return (self.increase, self.decrease) if self.direction == "paper" else (-self.decrease, -self.increase)

    def requirements(self) -> Requirements:
        return Requirements(within_samples=True, signals=True)

    def __call__(self, items: Items) -> Tensor:
        assert self.thresholds is not None, "fit() or thresholds=(low, high) comes first"
        score = _energy_of(items, self.energy_temperature, self.level)
        low, high = self.thresholds
        up, down = self._steps
        # A sum instead of torch.where: overlapping thresholds, as earlier versions fitted at ratio 0.5, give T + up -
        # down.
        return self.temperature + up * (score < low) - down * (score > high)

    def groups(self, temperatures: Tensor) -> dict[str, Tensor]:
        """The shares of low- and high-energy items, found from their temperatures; a side that is off is left out."""
        up, down = self._steps
        sides = {"low_energy_share": up, "high_energy_share": -down}
        there = {name: step for name, step in sides.items() if step}
        # Compare with half of the step, because temperatures are rounded to float32.
        signs = tuple(math.copysign(1.0, step) for step in there.values())
        halves = tuple(math.copysign(1.0, step) * (self.temperature + step / 2) for step in there.values())
        device = temperatures.device
        beyond = constant(signs, device).unsqueeze(-1) * temperatures > constant(halves, device).unsqueeze(-1)
        return dict(zip(there, (beyond.sum(-1) / max(len(temperatures), 1)).unbind(), strict=True))  # [sides, N]


@register_temperature("gradation")
@checked
@dataclass
class Gradation(Fitted):
    """Energy KD's ladder (Appendix A.4): ten energy deciles, ten temperatures, the lowest for the highest energy.

    `temperatures` are given from the highest-energy decile to the lowest. Eq. 13 does not state the order; this one
    follows the logic of the method, in which an uncertain teacher is softened less. `thresholds` are the inner edges,
    ascending, midway between the energies of two training items (items of equal energy stay together, in the higher
    decile).
    """

    temperatures: tuple[SoftmaxTemperature, ...] = (2.0, 2.5, 3.0, 3.5, 4.0, 4.0, 4.5, 5.0, 5.5, 6.0)
    thresholds: tuple[float, ...] | None = None
    energy_temperature: SoftmaxTemperature = 4.0
    level: Level = "sample"

    def __post_init__(self) -> None:
        if len(self.temperatures) < 2:
            raise ValueError(f"Gradation: temperatures={self.temperatures!r} must have two temperatures or more")
        if self.thresholds is not None:
            self.restore(self.thresholds)

    @property
    def thresholds_or_none(self) -> tuple[float, ...] | None:
        return self.thresholds

    def fit(self, energies: Tensor) -> None:
        energies, steps = ordered("Gradation", energies), len(self.temperatures)
        count_of_share("Gradation", len(energies), 1 / steps)
        edges = [len(energies) * k // steps for k in range(steps + 1)]
        found = [below(energies, edge) for edge in edges[1:-1]]
        step = torch.bucketize(energies, torch.tensor(found, dtype=energies.dtype), right=True)
        items = torch.bincount(step, minlength=steps).tolist()
        parts = {f"in step {k + 1} of {steps}": (items[k], edges[k + 1] - edges[k]) for k in range(steps)}
        check_parts("Gradation", parts, len(energies))
        self.thresholds = tuple(found)

    def restore(self, thresholds: tuple[float, ...]) -> None:
        if len(thresholds) != len(self.temperatures) - 1 or list(thresholds) != sorted(thresholds):
            raise ValueError(
                f"Gradation: thresholds={thresholds!r} must be {len(self.temperatures) - 1} ascending energies, one "
                "between each pair of neighbouring temperatures"
            )
        self.thresholds = tuple(float(t) for t in thresholds)

    @property
    def choices(self) -> tuple[float, ...]:
        """All temperatures that may be returned, ascending."""
        return tuple(sorted(set(map(float, self.temperatures))))

    def requirements(self) -> Requirements:
        return Requirements(within_samples=True, signals=True)

    def __call__(self, items: Items) -> Tensor:
        assert self.thresholds is not None, "fit() or thresholds=... comes first"
        score = _energy_of(items, self.energy_temperature, self.level)
        ladder = self.temperatures[::-1]  # in the order of ascending energies
        result = torch.full_like(score, ladder[0])
        for edge, lower, upper in zip(self.thresholds, ladder, ladder[1:], strict=False):
            result = result + (upper - lower) * (score >= edge)
        return result


def _energy_of(items: Items, energy_temperature: float, level: Level) -> Tensor:
    score = items.teacher.energy(energy_temperature)
    return items.mean_over_sample(score) if level == "sample" else score


def resolve_temperature(spec: Any) -> Any:
    """`resolve` for the temperature slot, where a number (or a string of one) means `Constant`."""
    if isinstance(spec, str):
        try:
            spec = float(spec)
        except ValueError:
            return resolve(spec, TEMPERATURES, "temperature")
    if isinstance(spec, (int, float)) and not isinstance(spec, bool):
        return Constant(spec)
    return resolve(spec, TEMPERATURES, "temperature")
