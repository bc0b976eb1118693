"""The teacher slot filled from a cache on disk: training a language model without its teacher in memory.

B rows, N target tokens, k stored classes, S temperatures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn

from hfkd.coarse import StoredOutputs
from hfkd.data.text_collate import TokenCollator
from hfkd.targets import Targets
from hfkd.teachers.scan import TeacherScan, data_fingerprint
from hfkd.teachers.text_cache import MANIFEST, Manifest, tokens_hash
from hfkd.temperatures import Level

PREFIX = "teacher_"  # of a batch's keys that hold what the teacher said
Collate = Callable[[list[Any]], dict[str, Tensor]]


class CachedTextTeacher(nn.Module):
    """What `build_text_cache` stored, in place of the teacher.

        DistillationTrainer(student, CachedTextTeacher("cache"), args, train_dataset=rows, processing_class=tokenizer)

    The rows may be shuffled, selected and batched otherwise than when they were stored; each is found by its `index`,
    and refused when its tokens have changed. Divergences are over k + 1 classes (`hfkd.coarse`), entropies and energies
    exact. Reading happens where batches are made, in the loader's workers if there are any.
    Raises ValueError for a folder without a cache, or with a part of one.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        manifest = Manifest.read(folder)
        if manifest is None:
            raise ValueError(f"there is no {MANIFEST} in {folder}: build the cache with build_text_cache")
        missing = manifest.missing(folder)
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(manifest.shards)} files are missing or damaged in {folder} (first "
                f"{missing[0]}): call build_text_cache again, which makes those alone"
            )
        self.manifest = manifest
        shards = [Dataset.from_file(str(Path(folder) / shard)) for shard in manifest.shards]
        self._rows = concatenate_datasets(shards).with_format("arrow")
        keys = self._rows[:]
        found = zip(keys["index"].to_pylist(), keys["tokens"].to_pylist(), strict=True)
        self._known = {index: (number, tokens) for number, (index, tokens) in enumerate(found)}

    def extra_repr(self) -> str:
        m = self.manifest
        return f"{m.name or 'teacher'}, weights {m.teacher[:8]}, k={m.k}, temperatures={m.temperatures}"

    def check_rows(self, dataset: Any) -> None:
        """Raise ValueError unless every row of `dataset` is stored, with the tokens it has now."""
        if isinstance(dataset, Dataset) and data_fingerprint(dataset) == self.manifest.data:
            return
        for number in range(len(dataset)):
            row = dataset[number]
            if "index" not in row:
                raise ValueError(f"row {number} has no index to find its teacher's outputs by: use tokenize_dataset")
            if self._find(row) is None:
                raise ValueError(
                    f"the teacher cache does not hold row {number} (index {int(row['index'])}) with the tokens that it "
                    "has now: build the cache from this dataset"
                )

    def look_up(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """What the teacher said of the rows' target tokens, row after row; nothing if any of them is not stored."""
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

    def outputs(self, inputs: Mapping[str, Tensor]) -> StoredOutputs:
        """From a batch that `collator` made."""
        if PREFIX + "ids" not in inputs:
            raise ValueError(
                "the teacher cache does not hold this batch's rows with the tokens that they have now: train on the "
                "rows it was built from, or build another"
            )
        ids, logits, tails, entropy, energy, logsumexp = (inputs[PREFIX + name] for name in _SHAPES)
        m = self.manifest
        by_temperature = dict(zip(m.temperatures, tails.unbind(-1), strict=True)) if m.has_tail else {}
        energies = {1.0: -logsumexp, m.energy_temperature: energy}
        return StoredOutputs(ids, logits, by_temperature, energies, {m.entropy_temperature: entropy}, m.num_classes)

    def collator(self, collate: Collate) -> "CachedCollator":
        return CachedCollator(collate, self)

    def scan(
        self,
        dataset: Any,
        energy_temperature: float = 4.0,
        entropy_temperature: float = 3.0,
        level: Level = "sample",
    ) -> TeacherScan:
        """`hfkd.teachers.scan` from what is stored: each row's (or packed document's) mean energy, entropy and
        likeliest token, or those of each token. NaN for a row without target tokens.
        """
        found = []
        for number in range(len(dataset)):
            said = self.outputs(self.look_up([dataset[number]]))
            values = said.energy(energy_temperature), said.entropy(entropy_temperature), said.ids[:, 0].float()
            per_token = torch.stack(values)  # [3, N]
            one_each = [1] * len(said.ids)
            lengths = one_each if level == "item" else Targets.of(TokenCollator(0)([dataset[number]])).lengths
            found += [part.sum(-1, keepdim=True) / part.shape[-1] for part in per_token.split(list(lengths or ()), -1)]
        energy, entropy, prediction = torch.cat(found, dim=-1).contiguous()
        return TeacherScan(energy, entropy, prediction.nan_to_num().long())

    def _find(self, row: Mapping[str, Any]) -> int | None:
        number, tokens = self._known.get(int(row["index"]), (None, "")) if "index" in row else (None, "")
        return number if number is not None and tokens == tokens_hash(row) else None


@dataclass
class CachedCollator:
    """A collator's batch, and what the teacher said of it: [N, ...] tensors under `teacher_...`."""

    collate: Collate
    teacher: CachedTextTeacher

    def __call__(self, rows: list[Any]) -> dict[str, Tensor]:
        return self.collate(rows) | self.teacher.look_up(rows)


_SHAPES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "ids": (np.int64, ("k",)),
    "logits": (np.float32, ("k",)),
    "tails": (np.float32, ("S",)),
    "entropy": (np.float32, ()),
    "energy": (np.float32, ()),
    "logsumexp": (np.float32, ()),
}
