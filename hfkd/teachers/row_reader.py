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

from hfkd.losses.functional import sums_by
from hfkd.losses.items import Items
from hfkd.tasks.base import Task
from hfkd.teachers.agreement import disagreement, fixed_batches, size_of, tolerance
from hfkd.teachers.frozen import FrozenTeacher
from hfkd.utils.devices import device_of

NAMES = ("energy", "entropy")


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
        batch = send_to_device(batch, self.device)
        teacher = self.teacher if compiled else self.teacher.uncompiled
        logits = teacher(**self.task.for_teacher(batch))[..., : self.num_classes]
        items = self.task.teacher_items(batch, logits)
        said = items.teacher
        finite = said.of_items(said.logits.isfinite().all(-1).float()) == 1
        energy = said.energy(self.energy_temperature).where(finite, torch.nan)
        columns = energy, said.entropy(self.entropy_temperature), said.of_items(said.logits.argmax(-1).float())
        return torch.stack([*columns, torch.ones_like(energy)], dim=-1), items

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

    def means(self, rows: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Energy and entropy of each of `rows` [B, 2], NaN for one without items, and the magnitude of its logits [B].

        None if rows are random.
        """
        batches = fixed_batches(self.dataset, rows, self.batch_size, self.collate)
        if not batches:
            return None
        values, sizes = [], []
        for batch in batches:
            per_item, items = self.read(batch, compiled=False)
            sizes_of = items.teacher.of_items(size_of(items.teacher.logits).to(per_item))
            of_rows = torch.cat([per_item, sizes_of[:, None]], dim=-1)
            means = row_means(of_rows, items)  # [B, 5], the fourth 0 for a row without items
            values.append(means[:, :2].where(means[:, 3:4] > 0, torch.nan))
            sizes.append(means[:, 4])
        return torch.cat(values).cpu(), torch.cat(sizes).cpu()


def row_means(values: Tensor, items: Items) -> Tensor:
    """[N, k] -> [B, k]: the mean over the items of each row of the batch, also for packed rows; 0 without items."""
    row, count = items.rows
    sums, counts = sums_by(row, count, values), sums_by(row, count, values.new_ones(len(row)))
    return (sums / counts.clamp(min=1)[:, None]).to(values.dtype)
