"""A store's rows kept on the device, read and written without synchronizing the host.

S slots, M rows of one call, C classes.
"""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from hfkd.teachers.image_cache.quantize import decode, encode
from hfkd.teachers.image_cache.store import LogitStore
from hfkd.utils.devices import send

PART = 1 << 16  # number of rows read from the file at once
SHARE = 4  # the rows may take one part in so many of a GPU's free memory


def fits(nbytes: int, device: torch.device) -> bool:
    """Whether rows of so many bytes are kept on the device by default: on a GPU with enough free memory."""
    return device.type == "cuda" and torch.cuda.is_available() and SHARE * nbytes <= torch.cuda.mem_get_info(device)[0]


@dataclass
class _UnderWay:
    """Rows being copied from the device to the file."""

    slots: Tensor
    levels: Tensor
    scale: Tensor
    arrived: torch.cuda.Event | None


class DeviceStore:
    """`LogitStore` in the memory of `device`, with the same methods and logits; takes 2 C + 16 bytes for each slot.
    Slots are passed on the host, which tracks which rows the device has.

    Written rows are copied to the file later, during the next calls or `flush`, and count as known from then on. Rows
    that other processes write to the file in the meantime are not visible.
    """

    def __init__(self, file: LogitStore, device: torch.device) -> None:
        self.file, self.slots, self.path = file, file.slots, file.path
        self.levels = torch.zeros(file.slots, file.classes, dtype=torch.int16, device=device)
        self.scale = torch.zeros(file.slots, 4, device=device)
        self.known = torch.zeros(file.slots, dtype=torch.bool)
        self._under_way: deque[_UnderWay] = deque()
        for slots in file.written(PART):
            levels, scale, found = file.read_encoded(slots)
            if found.any():
                self.levels[slots[0] : slots[-1] + 1], self.scale[slots[0] : slots[-1] + 1] = levels, scale
                self.known[slots] = found

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """[M] slots on the host -> logits [M, C] on the device, and a mask [M] of known rows on the host."""
        self._settle(wait=False)
        inside = (slots >= 0) & (slots < self.slots)
        places = torch.where(inside, slots, 0)
        there = send(places, self.levels.device)
        return decode(self.levels[there], self.scale[there]), self.known[places] & inside

    def write(self, slots: Tensor, logits: Tensor) -> Tensor:
        """Store logits [M, C] on the device in slots [M], given on the host; returns them as they will be read.

        Rows that `encode` cannot represent, or whose slot is -1, are not stored and are returned unchanged.
        """
        logits = logits.float()
        levels, scale = encode(logits)
        kept = (slots >= 0).nonzero().squeeze(-1)
        rows, places = send(kept, logits.device), send(slots[kept], logits.device)
        new_levels, new_scale = levels[rows], scale[rows]
        self.levels[places], self.scale[places] = new_levels, new_scale
        self._under_way.append(self._on_its_way(slots[kept], new_levels, new_scale))
        numbered = send(slots >= 0, logits.device) & scale.isfinite().all(1)
        return torch.where(numbered[:, None], decode(levels, scale), logits)

    def flush(self) -> None:
        """Wait until all written rows are in the file."""
        self._settle(wait=True)

    def count(self) -> int:
        """Number of slots with a row."""
        return int(self.known.sum())

    def _on_its_way(self, slots: Tensor, levels: Tensor, scale: Tensor) -> _UnderWay:
        pinned = levels.is_cuda and torch.cuda.is_available()
        levels, scale = (
            torch.empty_like(x, device="cpu", pin_memory=pinned).copy_(x, non_blocking=x.is_cuda)
            for x in (levels, scale)
        )
        arrived = torch.cuda.Event() if pinned else None
        if arrived is not None:
            arrived.record()
        return _UnderWay(slots, levels, scale, arrived)

    def _settle(self, wait: bool) -> None:
        """Write rows to the file whose copy to the host is complete; `wait`: all rows."""
        while self._under_way:
            first = self._under_way[0]
            if first.arrived is not None and not first.arrived.query():
                if not wait:
                    return
                first.arrived.synchronize()
            self._under_way.popleft()
            kept = self.file.write_encoded(first.slots, first.levels, first.scale)
            self.known[first.slots[kept]] = True
