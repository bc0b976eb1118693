"""Maps resized a strip at a time: the logits of all pixels, 21 floats each and more, never exist at once.

B images, C classes, h and w of a network's maps, H and W of the grid of pixels, N items: its pixels with a label.
A line is a row of pixels of one image: r lines of a strip, and s lines of the maps that these lie between.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hfkd.losses.chunked import ChunkedLoss
from hfkd.losses.chunked_outputs import BLOCK
from hfkd.losses.counts import Counts, Number
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.functional import upcast
from hfkd.losses.heads import gradients
from hfkd.losses.items import HiddenItems, same_classes
from hfkd.losses.sources import Source
from hfkd.utils.devices import send
from hfkd.utils.targets import HostTargets, Targets


class Strip(NamedTuple):
    """Which lines of the maps some items need: `image` and `line` of each [s], and for each line of the strip the two
    among those s that it lies `between` [2, r], and how near to the second [r]. start: the strip's first pixel."""

    image: Tensor
    line: Tensor
    between: Tensor
    weight: Tensor
    start: int


class StripSource(Source):
    """Maps [B, C, h, w] as `F.interpolate` resizes them (bilinear, corners not aligned) to H W, of pixels with a label.

    position: of each item [N], ascending, into B H W; `on_host` the same where the host reads it without waiting.
    Lines are mixed by hand, columns by F.interpolate itself. float32 or wider.
    """

    def __init__(self, maps: Tensor, size: Sequence[int], position: Tensor, on_host: Tensor) -> None:
        self.maps, self.position, self.on_host = maps, position, on_host
        (self.height, self.width), (self.lines, columns) = size, maps.shape[-2:]
        self.inputs = [maps]
        self.same = (self.height, self.width) == (self.lines, columns)
        # As F.interpolate has it: pixel i is at (i + 1/2) h / H - 1/2, no less than 0.
        at = ((torch.arange(self.height).double() + 0.5) * (self.lines / self.height) - 0.5).clamp(min=0)
        self.above = at.long().clamp(max=self.lines - 1)  # [H]
        self.below = (self.above + 1).clamp(max=self.lines - 1)
        self.weight = (at - self.above).to(torch.promote_types(maps.dtype, torch.float32))

    @property
    def num_classes(self) -> int:
        return self.maps.shape[1]

    def __call__(self, rows: slice) -> Tensor:
        if rows.start == rows.stop:
            return upcast(self.maps.new_empty(0, self.num_classes))
        strip = self._strip(rows)
        with torch.no_grad():
            return self._pixels(rows, strip, self._read(strip))

    def with_backward(self, rows: slice, sums: Sequence[Tensor]) -> tuple[Tensor, Callable[[Tensor], None]]:
        if rows.start == rows.stop:
            return self(rows), lambda gradient: None
        strip = self._strip(rows)
        source = self._read(strip).requires_grad_()
        with torch.enable_grad():
            pixels = self._pixels(rows, strip, source)

        def add(gradient: Tensor) -> None:
            (found,) = gradients(pixels, [source], gradient)
            sums[0][strip.image, :, strip.line] += found  # each line once

        return pixels.detach(), add  # nothing kept for backward is among its values

    def _strip(self, rows: slice) -> Strip:
        """From the host's numbers, so that no device is waited for."""
        first, last = (int(self.on_host[k]) // self.width for k in (rows.start, rows.stop - 1))
        image, line = self._divided(first, last + 1, self.height)
        above, below = (image * self.lines + lines[line] for lines in (self.above, self.below))
        start, stop = int(above[0]), int(below[-1]) + 1
        found = (*self._divided(start, stop, self.lines), torch.stack([above, below]) - start, self.weight[line])
        read, lines, between, weight = (send(part, self.maps.device) for part in found)
        return Strip(read, lines, between, weight, first * self.width)

    def _divided(self, start: int, stop: int, height: int) -> tuple[Tensor, Tensor]:
        """The image of each of some lines, and which of its `height` lines it is."""
        lines = torch.arange(start, stop)
        return lines // height, lines % height

    def _read(self, strip: Strip) -> Tensor:
        """The lines of the maps [s, C, w]."""
        return upcast(self.maps.detach()[strip.image, :, strip.line])

    def _pixels(self, rows: slice, strip: Strip, source: Tensor) -> Tensor:
        """[n, C]"""
        if not self.same:
            above, below = (source.index_select(0, lines) for lines in strip.between)
            source = torch.lerp(above, below, strip.weight.view(-1, 1, 1))  # [r, C, w]
            mixed = source.permute(1, 0, 2).unsqueeze(0).contiguous(memory_format=torch.channels_last)
            size = (len(source), self.width)
            source = F.interpolate(mixed, size=size, mode="bilinear", align_corners=False)[0].permute(1, 0, 2)
        grid = source.transpose(1, 2).flatten(0, 1)  # [r W, C]
        return grid.index_select(0, self.position[rows] - strip.start)


class StripLoss:
    """`DistillationLoss` on the pixels of maps, resized and learned a strip at a time: same loss, parts and gradients.

        loss, parts = StripLoss(loss)(map_items(student_maps, teacher_maps, labels, size), num_items)

    As `ChunkedLoss`, whose ValueErrors it has. Each network's maps may be of their own size; what the loss reads is the
    grid of `size`. An image is longer than a strip: energies and entropies that temperature and weighting ask for are
    found in a pass without gradient before.
    """

    def __init__(self, loss: DistillationLoss) -> None:
        self.chunked = ChunkedLoss(loss)

    def __call__(self, items: "MapItems", num_items: Counts | Number | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        student, teacher = items.sources
        self.chunked.chunk_size = max(BLOCK // student.num_classes, 1)
        return self.chunked.over(items.known, student, teacher, num_items)


class MapItems(NamedTuple):
    """What is known of N pixels before their logits are, and what gives those of student and teacher."""

    known: HiddenItems
    sources: tuple[StripSource, StripSource]


def map_items(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    size: Sequence[int],
    *,
    progress: float | None = 0.0,
    host_targets: HostTargets | None = None,
) -> MapItems:
    """Maps [B, C, h, w] of both networks, and labels [B, P] of the P = H W pixels of a grid of `size`."""
    same_classes(student.shape[1], teacher.shape[1])
    targets = Targets(labels, host_targets, shift=0)
    position, on_host = targets.position, targets.on_host
    sources = (StripSource(student, size, position, on_host), StripSource(teacher, size, position, on_host))
    known: dict[str, Any] = {"lengths": targets.lengths, "row": targets.row}
    samples = targets.sample, targets.num_samples
    return MapItems(HiddenItems(student, teacher, targets.labels, *samples, progress, **known), sources)
