"""The columns of a text cache, computed from the teacher's logits.

N target tokens, V vocabulary, k stored classes, S temperatures.
"""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from hfkd.data.text_collate import TokenCollator
from hfkd.data.token_rows import OWN_COLUMNS
from hfkd.losses import functional
from hfkd.losses.topk import spread, tail
from hfkd.tasks.media import unread_media
from hfkd.tasks.packing import PackingCheck
from hfkd.teachers.frozen import FrozenTeacher
from hfkd.teachers.token_cache.manifest import Manifest
from hfkd.utils.devices import device_of
from hfkd.utils.targets import Targets

logger = logging.getLogger(__name__)

# The lowest stored logit relative to the largest, and the temperature up to which its exp is 0.
LOWEST = {"float16": torch.finfo(torch.float16).min, "float32": -1e30}
HIGHEST_TEMPERATURE = {"float16": 600.0, "float32": 1e6}


@torch.no_grad()
def text_columns(
    teacher: FrozenTeacher, rows: list[dict[str, Any]], manifest: Manifest, batch_size: int
) -> dict[str, list[Any]]:
    """The columns of some rows. Rows of similar length are batched together."""
    collate = TokenCollator(0, refused=unread_media(teacher.networks[0], "train with the live teacher"))
    device, check = device_of(teacher), PackingCheck(teacher.networks)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    found: list[dict[str, Any]] = [{"index": row["index"], "tokens": tokens_hash(row)} for row in rows]
    for start in range(0, len(rows), batch_size):
        numbers = by_length[start : start + batch_size]
        batch = {key: v.to(device) for key, v in collate([rows[i] for i in numbers]).items()}
        check(batch)
        targets = Targets.of(batch)
        logits = functional.upcast(targets.pick(teacher(**batch))[:, : manifest.num_classes])  # [N, V]
        if not torch.isfinite(logits.logsumexp(-1)).all():
            broken = sorted(int(rows[i]["index"]) for i in numbers)
            raise ValueError(
                f"the teacher's logits are NaN or infinite among the rows with index {broken}: check "
                "its checkpoint and its precision"
            )
        sizes = torch.bincount(targets.row, minlength=len(numbers)).tolist()
        for name, values in _columns(logits, manifest).items():
            for i, part in zip(numbers, values.cpu().split(sizes), strict=True):
                found[i][name] = (part.mean(0) if name == "spreads" and len(part) else part).numpy().ravel()
    return {name: [found[i][name] for i in range(len(rows))] for name in manifest.features}


def tokens_hash(row: Mapping[str, Any]) -> str:
    """A hash of what a row's outputs depend on: its tokens, labels, attention mask and positions."""
    digest = xxhash.xxh3_64()
    for name in ("input_ids", "labels"):
        digest.update(np.asarray(row[name], dtype=np.int64).tobytes())
    for name in (name for name in OWN_COLUMNS if row.get(name) is not None):
        digest.update(name.encode() + np.asarray(row[name], dtype=np.int64).tobytes())
    return digest.hexdigest()


def _columns(logits: Tensor, manifest: Manifest) -> dict[str, Tensor]:
    """[N, V] -> the values of each column, [N], [N, k] or [N, S]."""
    top, ids = logits.topk(manifest.k, dim=-1)
    largest = top[:, :1]
    # Softmax is invariant to shifts, and half precision is finest near 0, where probable classes then are.
    likeliest = top - largest
    lowest = LOWEST[manifest.dtype]
    if manifest.dtype == "float16" and bool((likeliest < lowest).any()):
        _say_that_masks_are_cut()
    softened = [(t, (logits - largest) / t) for t in manifest.temperatures if manifest.has_tail]
    tails, spreads = [t * tail(z, ids) for t, z in softened], [spread(z, ids) for _, z in softened]
    return {
        "ids": ids.to(torch.uint16 if manifest.num_classes <= 2**16 else torch.int32),
        "logits": likeliest.clamp(min=lowest).to(getattr(torch, manifest.dtype)),
        "tails": torch.stack(tails, -1).clamp(min=LOWEST["float32"]) if tails else logits[:, :0],
        "spreads": torch.stack(spreads, -1) if spreads else logits[:, :0],
        "entropy": functional.entropy(logits, manifest.entropy_temperature),
        "energy": functional.energy(logits, manifest.energy_temperature),
        "logsumexp": logits.logsumexp(-1),
    }


@cache
def _say_that_masks_are_cut() -> None:
    logger.warning(
        "Some of the teacher's logits relative to the largest are below %g, the lowest value of float16: these "
        "classes keep probability 0, but a reverse divergence differs from the live teacher's. Pass "
        "dtype='float32' to store them exactly.",
        LOWEST["float16"],
    )
