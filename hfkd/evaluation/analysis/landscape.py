"""Loss landscapes of a trained network along random filter-normalised directions (Li et al., 2018).

P points a side, n images.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LEVEL = 1.6  # of EA-KD's Area@1.6


@dataclass(frozen=True)
class Landscape:
    """coordinates [P], the same along each direction; losses [P] of one direction, [P, P] of two (first, second)."""

    coordinates: Tensor
    losses: Tensor

    @property
    def variance(self) -> float:
        """The variance of the losses at all points (divided by their number)."""
        return self.losses.double().var(correction=0).item()

    def area(self, level: float = LEVEL) -> float:
        """The share of the points whose loss is at most `level`.

        EA-KD reports an Area@1.6 of its loss landscapes without a definition that is known here. This is hfkd's
        definition.
        """
        return (self.losses <= level).double().mean().item()


def filter_normalised(network: nn.Module, seed: int) -> list[Tensor]:
    """A random direction for each parameter, in their order (Li et al., NeurIPS 2018, Section 4).

    Gaussian, then every filter (index of a weight's first dimension) is scaled to the norm of the network's filter. 0
    for one-dimensional parameters (biases and norms), as in their code. Generated on the CPU from `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for weight in network.parameters():
        drawn = torch.randn(weight.shape, generator=generator)
        if weight.ndim < 2:
            found.append(torch.zeros_like(weight))
            continue
        norms = weight.detach().flatten(1).norm(dim=1).cpu() / drawn.flatten(1).norm(dim=1)
        found.append((drawn * norms.view(-1, *[1] * (weight.ndim - 1))).to(weight))
    return found


@torch.no_grad()
def landscape(
    network: nn.Module,
    loss: Callable[[], float],
    directions: Sequence[Sequence[Tensor]],
    points: int = 11,
    reach: float = 1.0,
) -> Landscape:
    """`loss` with the network's parameters at theta + a d_1 (+ b d_2), a and b of `points` from -reach to reach.

    One or two directions, with a tensor for each parameter. The parameters are restored exactly; batch norm keeps its
    running statistics. With an odd number of points the network itself is at the centre.
    """
    coordinates = torch.linspace(-reach, reach, points, dtype=torch.float64)
    coordinates[coordinates.abs() < 1e-9] = 0  # the centre, up to rounding
    values = coordinates.tolist()
    with _moving(network, directions) as move:

        def at(*steps: float) -> float:
            move(steps)
            return loss()

        found = [at(a) for a in values] if len(directions) == 1 else [[at(a, b) for b in values] for a in values]
    return Landscape(coordinates, torch.tensor(found, dtype=torch.float64))


@contextmanager
def _moving(network: nn.Module, directions: Sequence[Sequence[Tensor]]) -> Iterator[Callable[[Sequence[float]], None]]:
    """Context that yields a function to move the parameters along the directions; restores them at the end."""
    own = [weight.detach().clone() for weight in network.parameters()]

    def move(steps: Sequence[float]) -> None:
        for place, (weight, start) in enumerate(zip(network.parameters(), own, strict=True)):
            weight.copy_(start)
            for direction, step in zip(directions, steps, strict=True):
                weight.add_(direction[place], alpha=step)

    try:
        yield move
    finally:
        for weight, start in zip(network.parameters(), own, strict=True):
            weight.copy_(start)
