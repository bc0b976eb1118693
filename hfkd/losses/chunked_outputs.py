"""What slots may read from a chunked loss: the energy and entropy of each item, without all logits in memory at once.

N items, n items in a chunk, C vocabulary.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hfkd.losses import functional
from hfkd.losses.outputs import Outputs
from hfkd.losses.sources import Source

# The number of logits in a block on a CPU, 4 MiB in float32: the intermediate results of the loss stay in the cache,
# and freed memory is reused instead of being requested from the system page by page.
BLOCK = 2**20

Signal = tuple[str, float]  # the name of a function in hfkd.losses.functional, and its temperature


class SignalOutputs(Outputs):
    """`Outputs` for slots that read energies and entropies only: reading the logits raises ValueError."""

    @property
    def logits(self) -> Tensor:
        raise ValueError(
            "this slot reads logits, which a chunked loss does not provide: use items.teacher.energy(T) or "
            "items.teacher.entropy(T) (or the student's), or set loss_chunk_size=0"
        )


class FeatureOutputs(SignalOutputs):
    """The outputs for terms on inner layers: the captured features, without logits."""

    def __init__(self, kept: Mapping[Any, Any]) -> None:
        object.__setattr__(self, "kept", kept)  # the dataclass is frozen

    @property
    def logits(self) -> Tensor:
        raise ValueError(
            "a term on inner layers also reads the items' logits, which a chunked loss does not provide: set "
            "signals=False in its requirements(), and loss_chunk_size=0"
        )

    def detach(self) -> "FeatureOutputs":
        return FeatureOutputs(self._kept(Tensor.detach) or {})


class BlockOutputs(SignalOutputs):
    """The energies and entropies of one chunk's logits before rescaling [n, C], computed block by block."""

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
    """The energies and entropies of more items than fit in a chunk: each takes a pass over the chunks, and is cached.

    A pass also computes the `expected` signals, so that all calls but the first need at most one pass.
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
    """`of` in steps of `size`; an empty slice gives one empty step, so that zero gradients are still computed."""
    starts = range(of.start, max(of.stop, of.start + 1), size)
    return [slice(start, min(start + size, of.stop)) for start in starts]


def keep(columns: dict[Any, Tensor], part: dict[Any, Tensor], rows: slice, length: int) -> None:
    """Copy each part into its rows of the column [length].

    Keeping the small tensors instead would fragment the memory between the large tensors of the blocks.
    """
    for name, values in part.items():
        if name not in columns:
            columns[name] = values.new_empty(length)
        columns[name][rows] = values


def blocks(logits: Tensor) -> tuple[Tensor, ...]:
    """The rows of a chunk's logits [n, C]: a few at a time on a CPU, all at once on other devices."""
    few = max(BLOCK // logits.shape[-1], 1)
    return logits.split(few if logits.device.type == "cpu" else max(len(logits), 1))
