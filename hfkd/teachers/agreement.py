"""Compares a few stored rows with the live teacher, to detect changes that cache keys cannot.

R rows, C classes, K numbers of each row.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import xxhash
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hfkd.teachers.image_cache.quantize import NATURAL
from hfkd.utils.random_state import kept_random_state

PROBED = 8  # rows
# Tolerance of the mean over these rows, relative to the logits' size; that of a single row is three times as large.
# Rounding depends on batch size, threads and machine: about 1e-5 in float32 on a CPU, 1e-3 for TF32 convolutions,
# 1e-2 in bfloat16. Other weights, images or code differ by 0.1 or more.
FLOAT32, HALF, BFLOAT16, QUANTISED = 0.0003, 0.005, 0.03, 0.05


def spread_rows(count: int, wanted: int = PROBED) -> list[int]:
    """Row numbers below `count`, one in each of `wanted` equal parts, at a place chosen by a fixed hash."""
    edges = [count * part // wanted for part in range(wanted + 1)]
    hashes = [xxhash.xxh3_64_intdigest(bytes([part])) for part in range(wanted)]
    parts = zip(edges, edges[1:], hashes, strict=False)
    return [low + number % (high - low) for low, high, number in parts if high > low]


def tolerance(teacher: nn.Module, precision: str, *devices: str) -> float:
    """See above; `precision`: Accelerate's mixed precision; `devices`: those on which both results were computed."""
    kinds = {parameter.dtype for parameter in teacher.parameters()}
    if any(not kind.is_floating_point for kind in kinds) or precision == "fp8":
        return QUANTISED
    if torch.bfloat16 in kinds or precision == "bf16":
        return BFLOAT16
    if torch.float16 in kinds or precision == "fp16" or set(devices) != {"cpu"}:
        return HALF
    return FLOAT32


def size_of(logits: Tensor) -> Tensor:
    """[R, C] -> [R]: the magnitude of the logits, to which rounding is relative, without far lower masked classes."""
    near = logits > logits.amax(-1, keepdim=True) - NATURAL
    return logits.abs().masked_fill(~near, 0).amax(-1).clamp(min=1)


def fixed_batches(
    dataset: Any, rows: Sequence[int], batch_size: int, collate: Callable[[list[Any]], dict[str, Tensor]]
) -> list[dict[str, Tensor]] | None:
    """Batches of these rows; None if they are random, and thus cannot be compared."""
    parts = [list(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    with kept_random_state():
        draws = [list(DataLoader(dataset, batch_sampler=parts, collate_fn=collate)) for _ in range(2)]
    for one, other in zip(*draws, strict=True):
        if any(isinstance(value, Tensor) and not torch.equal(value, other[name]) for name, value in one.items()):
            return None
    return draws[0]


def disagreement(
    names: Sequence[str], rows: Sequence[Any], stored: Tensor, live: Tensor, allowed: Tensor
) -> str | None:
    """Describe a difference between stored and live numbers [R, K] above `allowed` [R]; None if there is none."""
    stored, live, allowed = (tensor.detach().cpu().double() for tensor in (stored, live, allowed))
    gap = (stored - live).abs().where(~(stored.isnan() & live.isnan()), 0).nan_to_num(torch.inf)  # [R, K]
    allowed = allowed.clamp(min=torch.finfo(torch.float32).tiny)
    if bool((gap <= 3 * allowed[:, None]).all()) and bool((gap.mean(0) <= allowed.mean()).all()):
        return None
    row, column = divmod(int((gap / allowed[:, None]).argmax()), len(names))
    return (
        f"the {names[column]} of row {rows[row]} was stored as {float(stored[row, column]):.4g}, but this teacher "
        f"computes {float(live[row, column]):.4g} (tolerance for rounding: {float(allowed[row]):.2g})"
    )


def everywhere(true: bool, accelerator: Accelerator | None) -> bool:
    """Whether it is true on every rank, so that all ranks take the same branch and none waits forever."""
    if accelerator is None or accelerator.num_processes == 1:
        return true
    return bool(accelerator.gather(torch.tensor([int(true)], device=accelerator.device)).all())
