"""What slots may ask of a loss over chunks: each item's energy and entropy, of logits that never exist all at once.

N items, n items of a chunk, C vocabulary.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hfkd.losses import functional
from hfkd.losses.outputs import Outputs
from hfkd.losses.sources import Source

# Numbers of a block of logits on a CPU, 4 MiB in float32: all that the loss makes of it stays in the cache, and freed
# memory is used again instead of being asked of the system, page by page.
BLOCK = 2**20

Signal = tuple[str, float]  # a function of hfkd.losses.functional, and its temperature


class SignalOutputs(Outputs):
    """`Outputs` for slots that ask for energies and entropies: the logits, where there are any, stay inside."""

    @property
    def logits(self) -> Tensor:
        raise ValueError(
            "this slot reads logits itself, which loss_chunk_size cannot serve: ask for items.teacher.energy(T) or "
            "items.teacher.entropy(T) (or the student's), or set loss_chunk_size 0"
        )


class FeatureOutputs(SignalOutputs):
    """Of terms on inner layers: what was kept of these, and nothing of logits."""

    def __init__(self, kept: Mapping[Any, Any]) -> None:
        object.__setattr__(self, "kept", kept)  # of a frozen dataclass

    @property
    def logits(self) -> Tensor:
        raise ValueError(
            "a term on inner layers reads the items' logits too, which a loss over chunks cannot serve: let its "
            "requirements() say signals=False, and set loss_chunk_size 0"
        )

    def detach(self) -> "FeatureOutputs":
        return FeatureOutputs(self._kept(Tensor.detach) or {})


class BlockOutputs(SignalOutputs):
    """Of one chunk's logits before rescaling [n, C], a block at a time."""

    def __init__(self, logits: Tensor, source: Source) -> None:
        self._blocks, self._source = blocks(logits), source

    def energy(self, temperature: float) -> Tensor:
        return torch.cat([functional.energy(self._source.rescale(block), temperature) for block in self._blocks])

    def entropy(self, temperature: float) -> Tensor:
        return torch.cat([functional.entropy(self._source.rescale(block), temperature) for block in self._blocks])

    @property
    def num_classes(self) -> int:
        return self._blocks[0].shape[-1]


class ChunkedOutputs(SignalOutputs):
    """Of more items than a chunk has: each signal a pass over the chunks, kept.

    A pass also fetches what is `expected`, so that in all calls but the first there is one pass or none.
    """

    def __init__(self, source: Source, rows: slice, chunk_size: int, expected: Iterable[Signal] = ()) -> None:
        self._source, self._rows, self._chunk_size, self._expected = source, rows, chunk_size, set(expected)
        self._known: dict[Signal, Tensor] = {}
        self.asked: set[Signal] = set()

    def energy(self, temperature: float) -> Tensor:
        return self._signal("energy", temperature)

    def entropy(self, temperature: float) -> Tensor:
        return self._signal("entropy", temperature)

    @property
    def num_classes(self) -> int:
        return self._source.num_classes

    def _signal(self, name: str, temperature: float) -> Tensor:
        signal = (name, temperature)
        self.asked.add(signal)
        if signal not in self._known:
            self._fetch((self._expected | {signal}) - self._known.keys())
        return self._known[signal]

    @torch.no_grad()
    def _fetch(self, wanted: set[Signal]) -> None:
        first = start = self._rows.start
        for rows in slices(self._rows, self._chunk_size):
            for logits in blocks(self._source(rows)):
                block = slice(start - first, start - first + len(logits))
                start += len(logits)
                said = {s: getattr(functional, s[0])(self._source.rescale(logits), s[1]) for s in wanted}
                keep(self._known, said, block, self._rows.stop - first)


def slices(of: slice, size: int) -> list[slice]:
    """`of` in steps; itself where it is empty, so that a loss and its zero gradients come out all the same."""
    starts = range(of.start, max(of.stop, of.start + 1), size)
    return [slice(start, min(start + size, of.stop)) for start in starts]


def keep(columns: dict[Any, Tensor], part: dict[Any, Tensor], rows: slice, length: int) -> None:
    """Copy each part into its column [length].

    Small tensors left among the large ones of a block would make holes in memory that the next block does not fit in.
    """
    for name, values in part.items():
        if name not in columns:
            columns[name] = values.new_empty(length)
        columns[name][rows] = values


def blocks(logits: Tensor) -> tuple[Tensor, ...]:
    """The rows of a chunk's logits [n, C], a few at a time on a CPU; a GPU wants them at once."""
    few = max(BLOCK // logits.shape[-1], 1)
    return logits.split(few if logits.device.type == "cpu" else max(len(logits), 1))
