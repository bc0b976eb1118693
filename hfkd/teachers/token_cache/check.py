"""Compares a few rows of a text cache with a live teacher.

N target tokens, k stored classes.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from hfkd.teachers.agreement import disagreement, spread_rows, tolerance
from hfkd.teachers.frozen import FrozenTeacher
from hfkd.teachers.image_cache.quantize import NATURAL
from hfkd.teachers.token_cache.columns import text_columns
from hfkd.teachers.token_cache.manifest import Manifest

NAMES = ("entropy", "energy", "logsumexp")
COMMON = 0.5  # minimum share of the k most probable classes in common of two passes, in any precision


def cache_differs(
    teacher: FrozenTeacher,
    dataset: Dataset,
    folder: str | Path,
    manifest: Manifest,
    absent: Collection[str],
    batch_size: int,
) -> str | None:
    """Describe how the teacher differs from the existing shards on a few rows of the dataset; None if not."""
    size = manifest.shard_rows
    present = [number for number, shard in enumerate(manifest.shards) if shard not in absent]
    count = sum(min(size, manifest.rows - number * size) for number in present)
    # The last shard alone may have fewer rows.
    chosen = [present[place // size] * size + place % size for place in spread_rows(count)]
    shards = {n // size: Dataset.from_file(str(Path(folder) / manifest.shards[n // size])) for n in chosen}
    stored = [shards[n // size].with_format("numpy")[n % size] for n in chosen]
    return rows_differ(teacher, [dataset[n] for n in chosen], stored, manifest, batch_size)


def rows_differ(
    teacher: FrozenTeacher,
    rows: Sequence[Mapping[str, Any]],
    stored: Sequence[Mapping[str, Any]],
    manifest: Manifest,
    batch_size: int,
) -> str | None:
    """Describe how the teacher differs from the `stored` columns (arrays) of these rows; None if it does not."""
    if not rows:
        return None
    live = text_columns(teacher, [dict(row) for row in rows], manifest, batch_size)
    there = {name: _joined([row[name] for row in stored]) for name in (*NAMES, "ids", "logits")}
    here = {name: _joined(live[name]) for name in (*NAMES, "ids", "logits")}
    tokens = [
        f"{row['index']}, target {n}" for row, part in zip(rows, live["energy"], strict=True) for n in range(len(part))
    ]
    if not tokens:
        return None
    share = tolerance(teacher, manifest.precision)
    near, its = ((side["logits"].view(-1, manifest.k), side["ids"].view(-1, manifest.k)) for side in (there, here))
    gap, common = _gap(near, its)  # both [N]
    if float(common.mean()) < COMMON:
        return (
            f"only {common.mean():.0%} of the {manifest.k} largest stored logits are among this teacher's "
            f"{manifest.k} largest"
        )
    sizes = torch.stack([here[name].abs() for name in NAMES[1:]]).amax(0).clamp(min=1)
    names = () if manifest.captured else NAMES
    none = gap.new_zeros(len(gap), 0)
    columns = [torch.stack([side[name] for name in names], -1) if names else none for side in (there, here)]
    return disagreement(
        [*names, "largest logits' mean gap"],
        tokens,
        torch.cat([columns[0], gap[:, None]], -1),
        torch.cat([columns[1], torch.zeros_like(gap)[:, None]], -1),
        share * sizes,
    )


def _gap(stored: tuple[Tensor, Tensor], live: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """From logits and ids [N, k] of both: the mean gap [N] of common classes, and the share [N] of these."""
    same = stored[1][:, :, None] == live[1][:, None, :]  # [N, k, k]
    matched = torch.where(same, live[0][:, None, :], 0).sum(-1)
    known = same.any(-1) & (stored[0] > -NATURAL)
    gaps = torch.where(known, (stored[0] - matched).abs(), 0)
    return gaps.sum(-1) / known.sum(-1).clamp(min=1), same.any(-1).float().mean(-1)


def _joined(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in parts]))
