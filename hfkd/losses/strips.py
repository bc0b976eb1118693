"""Maps of logits resized strip by strip: the logits of all pixels are never in memory at once.

B images, C classes, h and w size of a network's maps, H and W size of the grid of pixels, N items: the labelled pixels
of the grid. A line is a row of pixels of one image: r lines in a strip, and s lines of the maps from which they are
interpolated.
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
    """The lines of the maps that some items need.

    image, line: the image and the line of each of them [s]. between: for each line of the strip the two of those s from
    which it is interpolated [2, r]. weight: the weight of the second [r]. start: the strip's first pixel."""

    image: Tensor
    line: Tensor
    between: Tensor
    weight: Tensor
    start: int


class StripSource(Source):
    """The labelled pixels of maps [B, C, h, w] resized to H W as by `F.interpolate` (bilinear, corners not aligned).

    position: the index of each item in B H W [N], ascending; `on_host`: the same on the CPU, to avoid a device
    synchronisation. Lines are interpolated here, columns by F.interpolate. The result is float32 or wider.
    """

    def __init__(self, maps: Tensor, size: Sequence[int], position: Tensor, on_host: Tensor) -> None:
        self.maps, self.position, self.on_host = maps, position, on_host
        (self.height, self.width), (self.lines, columns) = size, maps.shape[-2:]
        self.inputs = [maps]
        self.same = (self.height, self.width) == (self.lines, columns)
        # As in F.interpolate: pixel i is at (i + 1/2) h / H - 1/2, but at least at 0.
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
            sums[0][strip.image, :, strip.line] += found  # each line occurs once

        return pixels.detach(), add  # may be overwritten: backward does not need these values

    def _strip(self, rows: slice) -> Strip:
        """The strip of some items, from numbers on the CPU, to avoid a device synchronisation."""
        first, last = (int(self.on_host[k]) // self.width for k in (rows.start, rows.stop - 1))
        image, line = self._divided(first, last + 1, self.height)
        above, below = (image * self.lines + lines[line] for lines in (self.above, self.below))
        start, stop = int(above[0]), int(below[-1]) + 1
        found = (*self._divided(start, stop, self.lines), torch.stack([above, below]) - start, self.weight[line])
        read, lines, between, weight = (send(part, self.maps.device) for part in found)
        return Strip(read, lines, between, weight, first * self.width)

    def _divided(self, start: int, stop: int, height: int) -> tuple[Tensor, Tensor]:
        """The image of each of the lines `start` to `stop`, and its index among the `height` lines of that image."""
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
    """`DistillationLoss` on the pixels of maps, computed strip by strip: same loss, parts and gradients.

        loss, parts = StripLoss(loss)(map_items(student_maps, teacher_maps, labels, size), num_items)

    Like `ChunkedLoss`, with the same ValueErrors. The two networks' maps may differ in size; the loss is computed on
    the grid of `size`. As an image is larger than a strip, the energies and entropies that temperature and weighting
    read are computed first, in a pass without gradient.
    """

    def __init__(self, loss: DistillationLoss) -> None:
        self.chunked = ChunkedLoss(loss)

    def __call__(self, items: "MapItems", num_items: Counts | Number | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        student, teacher = items.sources
        self.chunked.chunk_size = max(BLOCK // student.num_classes, 1)
        return self.chunked.over(items.known, student, teacher, num_items)


class MapItems(NamedTuple):
    """N pixels before their logits are computed, and the sources of the logits of student and teacher."""

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
