"""A teacher that reads its outputs from a cache on disk, to train a language model without the teacher in memory.

B rows, N target tokens, k stored classes, S temperatures.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn

from hfkd.data.text_collate import TokenCollator
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.outputs import Outputs
from hfkd.losses.temperatures import Level
from hfkd.losses.topk import CapturedOutputs, TopKOutputs
from hfkd.tasks.base import Task
from hfkd.teachers.agreement import PROBED, spread_rows
from hfkd.teachers.base import Teacher
from hfkd.teachers.fingerprint import changed_setting, configuration, data_fingerprint
from hfkd.teachers.frozen import FrozenTeacher
from hfkd.teachers.sampled_items import EvenItems
from hfkd.teachers.teacher_scan import TeacherScan
from hfkd.teachers.token_cache.check import rows_differ
from hfkd.teachers.token_cache.columns import tokens_hash
from hfkd.teachers.token_cache.manifest import MANIFEST, Manifest
from hfkd.teachers.token_cache.served import check_cached
from hfkd.utils.targets import Targets

logger = logging.getLogger(__name__)

PREFIX = "teacher_"  # of batch keys with the teacher's outputs
AT_ONCE = 256  # rows whose energies are read at a time
Collate = Callable[[list[Any]], dict[str, Tensor]]


class CachedTextTeacher(nn.Module, Teacher):
    """A teacher that reads outputs stored by `build_text_cache`.

        DistillationTrainer(student, CachedTextTeacher("cache"), args, train_dataset=rows, processing_class=tokenizer)

    Rows may be shuffled, selected and batched in any way; each is found by its `index`, and refused if its tokens have
    changed. Divergences are over k + 1 classes (`hfkd.losses.topk`); entropies and energies are exact. Rows are read by
    the collator, in the loader's workers if there are any. Raises ValueError for a folder without a complete cache.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        folder = Path(folder).expanduser()
        manifest = Manifest.read(folder)
        if manifest is None:
            raise ValueError(f"{folder} has no {MANIFEST}: build the cache with build_text_cache")
        missing = manifest.missing(folder)
        again = "build_captured_cache" if manifest.captured else "build_text_cache"
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(manifest.shards)} files are missing or damaged in {folder} (first "
                f"{missing[0]}): call {again} again, which creates only these"
            )
        self.folder, self.manifest, self.entropy_temperature = folder, manifest, manifest.entropy_temperature
        shards = [Dataset.from_file(str(Path(folder) / shard)) for shard in manifest.shards]
        self._rows = concatenate_datasets(shards).with_format("arrow")
        self._places = _Places.of(self._rows[:])
        if manifest.captured:
            logger.info(
                "%s has %d captured log-probabilities per token, at T = %g: they support divergences at this "
                "temperature, but no energies (Energy KD), entropies (EA-KD), other temperatures or inner layers",
                folder,
                manifest.k,
                *manifest.temperatures,
            )

    def extra_repr(self) -> str:
        m = self.manifest
        made = f"{'captured' if m.captured else 'weights'} {m.teacher[:8]}"
        return f"{m.name or 'teacher'}, {made}, k={m.k}, temperatures={m.temperatures}"

    def check_rows(self, dataset: Any) -> None:
        """Raise ValueError unless every row of `dataset` is stored with its current tokens."""
        if isinstance(dataset, Dataset) and data_fingerprint(dataset) == self.manifest.data:
            return
        for number in range(len(dataset)):
            row = dataset[number]
            if "index" not in row:
                raise ValueError(
                    f"row {number} has no index, by which the teacher's outputs are found: use tokenize_dataset"
                )
            if self._find(row) is None:
                raise ValueError(
                    f"the teacher cache does not contain row {number} (index {int(row['index'])}) with its "
                    "current tokens: build the cache from this dataset"
                )

    def check(self, teacher: nn.Module, dataset: Any, batch_size: int = PROBED) -> None:
        """Raise ValueError unless `teacher` reproduces the stored outputs of a few rows of `dataset`.

        Training from a cache does not check this, as it has no teacher. The teacher runs on its current device.
        """
        live = teacher if isinstance(teacher, FrozenTeacher) else FrozenTeacher(teacher).unfreeze()
        fault = changed_setting(self.manifest.config, configuration(live))
        rows = [dataset[number] for number in spread_rows(len(dataset))]
        numbers = [self._find(row) for row in rows]
        if fault is None and None in numbers:
            fault = f"it does not contain the row with index {rows[numbers.index(None)].get('index')}"
        if fault is None:
            table = self._rows.with_format("numpy")
            fault = rows_differ(live, rows, [table[number] for number in numbers], self.manifest, batch_size)
        if fault is not None:
            raise ValueError(
                f"the teacher cache in {self.folder} is not from this teacher: {fault}; build another cache"
            )

    def look_up(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The teacher's outputs at the rows' target tokens, ordered by row; empty if any row is not stored."""
        numbers = [self._find(row) for row in rows]
        if None in numbers:
            return {}
        table, m = self._rows[numbers], self.manifest
        flat = {name: table[name].combine_chunks().flatten().to_numpy() for name in m.features if name in _SHAPES}
        shapes = {"k": m.k, "S": len(m.temperatures)}
        return {
            PREFIX + name: torch.from_numpy(flat[name].astype(kind)).view(-1, *(shapes[s] for s in shape))
            for name, (kind, shape) in _SHAPES.items()
        }

    def spread(self, rows: Sequence[Mapping[str, Any]], temperature: float) -> float:
        """The mean of KL(u || p) over these rows, at a temperature of the cache: p over the classes in the bucket, u
        uniform over the same classes.
        """
        place = int(np.argmin([abs(known - temperature) for known in self.manifest.temperatures]))
        table = self._rows.with_format("numpy")
        found = [table[number]["spreads"] for number in map(self._find, rows) if number is not None]
        return float(np.mean([values[place] for values in found if len(values)]))

    def outputs(self, inputs: Mapping[str, Tensor]) -> TopKOutputs:
        """The outputs in a batch made by `collator`."""
        if PREFIX + "ids" not in inputs:
            raise ValueError(
                "the teacher cache does not contain this batch's rows with their current tokens: train on the "
                "rows it was built from, or build another cache"
            )
        ids, logits, tails, entropy, energy, logsumexp = (inputs[PREFIX + name] for name in _SHAPES)
        m = self.manifest
        by_temperature = dict(zip(m.temperatures, tails.unbind(-1), strict=True)) if m.has_tail else {}
        if m.captured:
            return CapturedOutputs(ids, logits, by_temperature, {}, {}, m.num_classes)
        energies = {1.0: -logsumexp, m.energy_temperature: energy}
        return TopKOutputs(ids, logits, by_temperature, energies, {m.entropy_temperature: entropy}, m.num_classes)

    def collator(self, collate: Collate) -> "CachedCollator":
        return CachedCollator(collate, self)

    def forward(self, *, each: bool = False, **inputs: Any) -> Tensor:
        raise ValueError("a teacher cache has only a few logits of each target token: pass the live teacher")

    def check_use(
        self, loss: DistillationLoss, args: Any, student: nn.Module, tokenizer: Any, dataset: Any, task: Task
    ) -> int | None:
        return check_cached(self, loss, args, student, tokenizer, dataset, task)

    def at_targets(
        self, inputs: Mapping[str, Any], targets: Targets, num_classes: int | None, on_heads: bool
    ) -> tuple[Outputs, Tensor | None]:
        return self.outputs(inputs), None

    def known(
        self,
        dataset: Any,
        energy_temperature: float = 4.0,
        entropy_temperature: float = 3.0,
        level: Level = "sample",
    ) -> TeacherScan:
        """`hfkd.teachers.scan` from the stored values: mean energy, entropy and most probable token of each row (or
        packed document), or those of each token, of very many as in `scan`. NaN for a row without target tokens.
        """
        logger.info("Reading the energies of %d rows in %s", len(dataset), self.folder)
        of_tokens, of_samples, of_rows = EvenItems(), [], []
        for start in range(0, len(dataset), AT_ONCE):
            rows = [dataset[number] for number in range(start, min(start + AT_ONCE, len(dataset)))]
            said = self.outputs(self.look_up(rows))
            values = said.energy(energy_temperature), said.entropy(entropy_temperature), said.ids[:, 0].float()
            per_token, targets = torch.stack(values), Targets.of(TokenCollator(0)(rows))  # [3, N]
            of_rows.append(_means(per_token, torch.bincount(targets.row, minlength=len(rows)).tolist()))
            if level == "item":
                of_tokens.add(per_token.T)
            else:
                of_samples.append(_means(per_token, targets.lengths or ()))
        found = of_tokens.joined().T if level == "item" else torch.cat(of_samples, dim=-1)
        return _as_scan(found, _as_scan(torch.cat(of_rows, dim=-1)))

    def _find(self, row: Mapping[str, Any]) -> int | None:
        return self._places.find(int(row["index"]), tokens_hash(row)) if "index" in row else None


@dataclass(frozen=True)
class _Places:
    """Where rows are stored: their index [R] in ascending order, with the hash of the tokens and the place of each.

    As arrays: in a dict, millions of rows took gigabytes, and again in each worker of a loader.
    """

    index: np.ndarray
    tokens: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, keys: Any) -> "_Places":
        """From the columns `index` and `tokens` of all rows, an Arrow table."""
        index = keys["index"].to_numpy()
        hashes = (int(one, 16) for chunk in keys["tokens"].iterchunks() for one in chunk.to_pylist())
        place = index.argsort()
        return cls(index[place], np.fromiter(hashes, np.uint64, len(index))[place], place)

    def find(self, index: int, tokens: str) -> int | None:
        """The place of the row with this index; None if there is none, or it had other tokens."""
        at = int(np.searchsorted(self.index, index))
        known = at < len(self.index) and self.index[at] == index and int(self.tokens[at]) == int(tokens, 16)
        return int(self.place[at]) if known else None


@dataclass
class CachedCollator:
    """A collator that adds the teacher's outputs to a batch: [N, ...] tensors under `teacher_...`."""

    collate: Collate
    teacher: CachedTextTeacher

    def __call__(self, rows: list[Any]) -> dict[str, Tensor]:
        return self.collate(rows) | self.teacher.look_up(rows)


def _means(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """[3, N] -> [3, S]: the means of S samples with so many of the N tokens each, NaN for one without any."""
    return torch.cat([part.sum(-1, keepdim=True) / part.shape[-1] for part in values.split(list(lengths), -1)], -1)


def _as_scan(columns: Tensor, of_rows: TeacherScan | None = None) -> TeacherScan:
    energy, entropy, prediction = columns.contiguous()
    return TeacherScan(energy, entropy, prediction.nan_to_num().long(), of_rows)


_SHAPES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "ids": (np.int64, ("k",)),
    "logits": (np.float32, ("k",)),
    "tails": (np.float32, ("S",)),
    "entropy": (np.float32, ()),
    "energy": (np.float32, ()),
    "logsumexp": (np.float32, ()),
}
