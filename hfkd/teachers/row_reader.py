"""Computes energies and entropies of rows from the teacher's logits.

B rows of a batch, N items, S stored rows.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from hfkd.losses.functional import energy, entropy, sums_by
from hfkd.losses.items import Items
from hfkd.losses.outputs import Outputs
from hfkd.tasks.base import Task
from hfkd.teachers.agreement import disagreement, fixed_batches, size_of, tolerance
from hfkd.teachers.frozen import FrozenTeacher
from hfkd.utils.devices import device_of

NAMES = ("energy", "entropy")
PART = 2**22  # logits that are read at a time, 16 MiB in float32: each number takes several copies of them


@dataclass(frozen=True)
class RowReader:
    """num_classes cuts a padded vocabulary. precision: Accelerate's mixed precision."""

    teacher: FrozenTeacher
    dataset: Any
    collate: Callable[..., dict[str, Tensor]]
    task: Task
    batch_size: int
    energy_temperature: float
    entropy_temperature: float
    num_classes: int | None
    precision: str

    @property
    def device(self) -> torch.device:
        return device_of(self.teacher)

    def frozen(self) -> AbstractContextManager[None]:
        return self.teacher.frozen()

    @torch.no_grad()
    def read(self, batch: Mapping[str, Any], compiled: bool = True) -> tuple[Tensor, Items]:
        """Energy, entropy, most probable class and a 1 for each item [N, 4], and the items.

        The energy is NaN if a logit is NaN or infinite.
        """
        columns, items = self._columns(batch, compiled, self._energy, self._entropy, _most_probable)
        return torch.stack([*columns, torch.ones_like(columns[0])], dim=-1), items

    def _columns(
        self, batch: Mapping[str, Any], compiled: bool, *numbers: Callable[[Tensor], Tensor]
    ) -> tuple[list[Tensor], Items]:
        """For each of `numbers`, a function of logits [n, C], its values for the items of a batch [N]; and the items.

        The logits of all tokens, prompts included, are not kept beside those of the items.
        """
        batch = send_to_device(batch, self.device)
        teacher = self.teacher if compiled else self.teacher.uncompiled
        items = self.task.teacher_items(batch, teacher(**self.task.for_teacher(batch))[..., : self.num_classes])
        return in_parts(items.teacher, *numbers), items

    def _energy(self, logits: Tensor) -> Tensor:
        return energy(logits, self.energy_temperature).where(logits.isfinite().all(-1), torch.nan)

    def _entropy(self, logits: Tensor) -> Tensor:
        return entropy(logits, self.entropy_temperature)

    def differs_from(self, stored: Mapping[str, Tensor], rows: Sequence[int], stored_on: str) -> str | None:
        """Describe how the teacher differs from the stored "energy" and "entropy" [S] for `rows`; None if it does not.

        Stored values are those of the rows, or means over their items. Random rows are not compared.
        """
        live = self.means(rows)
        if live is None:
            return None
        there = torch.stack([stored[name][list(rows)] for name in NAMES], dim=-1)
        allowed = live[1] * tolerance(self.teacher, self.precision, self.device.type, stored_on)
        return disagreement(NAMES, rows, there, live[0], allowed)

    @torch.no_grad()
    def means(self, rows: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Energy and entropy of each of `rows` [B, 2], NaN for one without items, and the magnitude of its logits [B].

        None if rows are random.
        """
        batches = fixed_batches(self.dataset, rows, self.batch_size, self.collate)
        if not batches:
            return None
        values, sizes = [], []
        for batch in batches:
            columns, items = self._columns(batch, False, self._energy, self._entropy, size_of)
            of_rows = torch.stack([*columns, torch.ones_like(columns[0])], dim=-1)
            means = row_means(of_rows, items)  # [B, 4], the last 0 for a row without items
            values.append(means[:, :2].where(means[:, 3:] > 0, torch.nan))
            sizes.append(means[:, 2])
            del items  # and its logits, before the next batch's
        return torch.cat(values).cpu(), torch.cat(sizes).cpu()


def in_parts(said: Outputs, *numbers: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The values of each item [N] of functions of logits [n, C], which get `PART` logits at a time."""
    few = max(PART // max(said.logits.shape[-1], 1), 1)
    found = [[number(part) for number in numbers] for part in said.logits.split(few)]
    return [said.of_items(torch.cat(values)) for values in zip(*found, strict=True)]


def _most_probable(logits: Tensor) -> Tensor:
    return logits.argmax(-1).float()


def row_means(values: Tensor, items: Items) -> Tensor:
    """[N, k] -> [B, k]: the mean over the items of each row of the batch, also for packed rows; 0 without items."""
    row, count = items.rows
    sums, counts = sums_by(row, count, values), sums_by(row, count, values.new_ones(len(row)))
    return (sums / counts.clamp(min=1)[:, None]).to(values.dtype)
