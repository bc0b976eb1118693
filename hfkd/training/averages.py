"""Running averages over all ranks, kept on the device until they are read.

N items, B rows of a batch.
"""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback

from hfkd.losses.counts import Number
from hfkd.losses.functional import sums_by
from hfkd.utils.devices import send

logger = logging.getLogger(__name__)

FOLDED = 64  # batches that are added up at once


class BatchAverage(TrainerCallback):
    """The mean over all items since the last `read`, of values added as means over the items of a batch.

    A value that is missing in some batches is averaged over the items of the others; one that no item had, such as the
    cross-entropy where no row had a label, has no mean.

    Added values are only stored, and summed many steps at a time, so that a step launches no kernel for them. As a
    callback it is reset at the start of each training, as Trainer's own mean of the loss is.
    """

    def __init__(self) -> None:
        self._start_anew()

    def _start_anew(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._items: dict[str, Number] = {}
        self._kept: list[tuple[dict[str, Tensor], Number]] = []
        self._on_trial: list[tuple[dict[str, Tensor], Number]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self._start_anew()

    def add(self, means: dict[str, Tensor], num_items: Number) -> None:
        self._on_trial.append((means, num_items))

    @property
    def pending(self) -> bool:
        """Whether anything was added since the last `keep` or `forget`."""
        return bool(self._on_trial)

    def keep(self) -> None:
        """Commit what was added so far: a later `forget` does not discard it."""
        self._kept += self._on_trial
        self._on_trial = []
        if len(self._kept) >= FOLDED:
            self._fold()

    def forget(self) -> None:
        """Discard what was added since the last `keep`."""
        self._on_trial = []

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all ranks, and reset. Must be called on every rank."""
        self.keep()
        self._fold()
        if not self._sums:
            return {}
        shown, device = list(self._sums), accelerator.device
        names = sorted(shown)  # the same order on all ranks, for the reduction
        counts = [torch.tensor(float(self._items[name]), device=device) for name in names]
        totals = accelerator.reduce(torch.stack([*(self._sums[name] for name in names), *counts])).tolist()
        self._start_anew()
        sums, items = totals[: len(names)], totals[len(names) :]
        means = {name: value / count for name, value, count in zip(names, sums, items, strict=True) if count}
        return {name: means[name] for name in shown if name in means}

    def _fold(self) -> None:
        for name in dict.fromkeys(name for means, _ in self._kept for name in means):
            found = [(means[name], count) for means, count in self._kept if name in means]
            means = torch.stack([mean for mean, _ in found])
            total = means @ _weights([count for _, count in found], means)
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._items[name] = self._items.get(name, 0) + sum(count for _, count in found)
        self._kept = []


def _weights(counts: list[Number], means: Tensor) -> Tensor:
    """Numbers of items as a tensor like `means`; those on the device are not copied to the host."""
    if any(isinstance(count, Tensor) for count in counts):
        return torch.stack([torch.as_tensor(count, device=means.device) for count in counts]).to(means.dtype)
    return send(torch.tensor([float(count) for count in counts], dtype=means.dtype), means.device)


class RowAverage:
    """The mean over all items of an evaluation, each row counted once.

    Padding the last batch repeats rows on some ranks. Sums per row are gathered, because repeated rows can be dropped
    from these, but not from a rank's mean.
    """

    def __init__(self, finite_only: bool = False) -> None:
        """finite_only: leave out rows whose value is NaN or infinite, unless all rows are."""
        self.finite_only = finite_only
        self.uncounted: list[str] = []
        self._rows: list[Tensor] = []
        self._names: list[str] = []

    def add(
        self,
        values: dict[str, Tensor],
        rows_of: tuple[Tensor, int],
        accelerator: Accelerator,
        counted: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """values: [N] each. rows_of: `Items.rows`. counted: [N] by name, which items have that value; default: all."""
        ones = torch.ones_like(next(iter(values.values())))
        counts = [counted[name].to(ones) if name in counted else ones for name in values]
        rows = torch.stack([sums_by(*rows_of, each) for each in (*values.values(), *counts)], dim=-1)  # [B, 2 k]
        self._rows.append(accelerator.gather_for_metrics(rows))
        self._names = list(values)

    def read(self) -> dict[str, float]:
        """Return the means; `uncounted` then lists the names of values that no item had."""
        if not self._rows:
            return {}
        rows = torch.cat(self._rows).cpu().double()
        if broken := int((~rows.isfinite().all(1)).sum()):
            logger.warning(
                "%s: NaN or infinite for %d of %d rows; check the data, the output of its transform, and the "
                "networks. Metrics such as accuracy still include these rows.",
                " and ".join(self._names), broken, len(rows),
            )  # fmt: skip
        means = {
            name: _mean(rows[:, [column, column + len(self._names)]], self.finite_only)
            for column, name in enumerate(self._names)
        }
        self.uncounted = [name for name, mean in means.items() if mean is None]
        return {name: mean for name, mean in means.items() if mean is not None}


def _mean(rows: Tensor, finite_only: bool) -> float | None:
    """rows [B, 2]: sums and numbers of items; `finite_only` drops non-finite rows if others exist. None: no items."""
    known = rows[rows[:, 1] > 0]
    finite = torch.isfinite(known[:, 0])
    value, items = (known[finite] if finite_only and finite.any() else known).sum(0).tolist()
    return value / items if items else None
