"""A few rows of what was stored, compared with the live teacher: that catches what no key of a cache can.

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
# How far the mean over these rows may be off, as a share of the logits' size; a single row by three times as much.
# Another batch size, thread count or machine rounds otherwise: float32 on a CPU by 1e-5, convolutions in TF32 by 1e-3,
# bfloat16 by 1e-2. Other weights, images or code differ by 0.1 and more.
FLOAT32, HALF, BFLOAT16, QUANTISED = 0.0003, 0.005, 0.03, 0.05


def spread_rows(count: int, wanted: int = PROBED) -> list[int]:
    """Row numbers below `count`, one in each of `wanted` equal parts, where a fixed hash says."""
    edges = [count * part // wanted for part in range(wanted + 1)]
    hashes = [xxhash.xxh3_64_intdigest(bytes([part])) for part in range(wanted)]
    parts = zip(edges, edges[1:], hashes, strict=False)
    return [low + number % (high - low) for low, high, number in parts if high > low]


def tolerance(teacher: nn.Module, precision: str, *devices: str) -> float:
    """See above; `precision` is Accelerate's mixed precision, `devices` what the two sets of numbers come from."""
    kinds = {parameter.dtype for parameter in teacher.parameters()}
    if any(not kind.is_floating_point for kind in kinds) or precision == "fp8":
        return QUANTISED
    if torch.bfloat16 in kinds or precision == "bf16":
        return BFLOAT16
    if torch.float16 in kinds or precision == "fp16" or set(devices) != {"cpu"}:
        return HALF
    return FLOAT32


def size_of(logits: Tensor) -> Tensor:
    """[R, C] -> [R]: how large logits are, which rounding goes by; masked classes, far below the others, left out."""
    near = logits > logits.amax(-1, keepdim=True) - NATURAL
    return logits.abs().masked_fill(~near, 0).amax(-1).clamp(min=1)


def fixed_batches(
    dataset: Any, rows: Sequence[int], batch_size: int, collate: Callable[[list[Any]], dict[str, Tensor]]
) -> list[dict[str, Tensor]] | None:
    """Batches of these rows, None where they come out at random and so cannot be compared with anything."""
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
    """What differs between the stored and the live numbers [R, K] by more than `allowed` [R], in words with both."""
    stored, live, allowed = (tensor.detach().double().cpu() for tensor in (stored, live, allowed))
    gap = (stored - live).abs().where(~(stored.isnan() & live.isnan()), 0).nan_to_num(torch.inf)  # [R, K]
    allowed = allowed.clamp(min=torch.finfo(torch.float32).tiny)
    if bool((gap <= 3 * allowed[:, None]).all()) and bool((gap.mean(0) <= allowed.mean()).all()):
        return None
    row, column = divmod(int((gap / allowed[:, None]).argmax()), len(names))
    return (
        f"the {names[column]} of row {rows[row]} is {float(stored[row, column]):.4g} there, and the teacher at hand "
        f"gives {float(live[row, column]):.4g} (up to {float(allowed[row]):.2g} apart is rounding)"
    )


def everywhere(true: bool, accelerator: Accelerator | None) -> bool:
    """Whether it is true on every rank: one that goes another way would wait for the others for ever."""
    if accelerator is None or accelerator.num_processes == 1:
        return true
    return bool(accelerator.gather(torch.tensor([int(true)], device=accelerator.device)).all())
