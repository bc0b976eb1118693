"""Quantization of logits to two bytes each.

M rows, C classes.
"""

import torch
from torch import Tensor

from hfkd.utils.devices import widest_float

LEVELS = 65534  # steps between a row's lowest and highest logit: int16 from -32767 to 32767
NATURAL = 256.0  # logits of networks have a smaller range: those further below are masked classes
WIDEST = 2048.0  # range that 65,534 levels resolve to 0.03


def encode(logits: Tensor) -> tuple[Tensor, Tensor]:
    """logits [M, C] -> levels q [M, C] int16; scale [M, 4] float32, step and offset of q >= 0 and of q < 0.

        z = offset + step q

    The step divides the row's range into 65,534 levels, and the offset preserves logsumexp(z); both signs share them.
    The error of a logit is at most 1/65,534 of its row's range: 0.0003 on CIFAR-100, where centred float16, of the same
    size, has an error of 0.01. If a row has masked classes, far below all others, these use the negative levels and the
    other classes the rest: the error is at most 1/32,767 of the range of each part, so that masks of a single value are
    exact. A row with NaN or infinity, or whose range without masked classes is above 2,048, has NaN as its scale.
    """
    masked = masked_classes(logits)
    split = masked.any(1, keepdim=True)
    low = logits.masked_fill(masked, torch.inf).amin(1, keepdim=True)
    spread = logits.amax(1, keepdim=True) - low
    step = torch.where(split, spread / (LEVELS // 2), spread / LEVELS).clamp(min=1e-30)
    centre = torch.where(split, 0.0, LEVELS / 2)
    levels = ((logits - low) / step - centre).round().clamp(-LEVELS / 2, LEVELS / 2)
    wide = widest_float(logits.device)
    weighty = [x.to(wide).masked_fill(masked, -torch.inf) for x in (logits, levels * step)]
    offset = (weighty[0].logsumexp(1, keepdim=True) - weighty[1].logsumexp(1, keepdim=True)).float()
    lower, lower_step, lower_offset = _below_zero(logits, masked)
    scale = torch.cat(
        [step, offset, torch.where(split, lower_step, step), torch.where(split, lower_offset, offset)], dim=1
    )
    told = (spread <= WIDEST) & scale.isfinite().all(1, keepdim=True)
    return torch.where(masked, lower, levels).nan_to_num(0).to(torch.int16), scale.where(told, torch.nan)


def decode(levels: Tensor, scale: Tensor) -> Tensor:
    """The inverse of `encode`: logits [M, C]."""
    step, offset, lower_step, lower_offset = scale.split(1, dim=1)
    below = levels < 0
    offset, step = torch.where(below, lower_offset, offset), torch.where(below, lower_step, step)  # [M, C]
    return torch.addcmul(offset, levels.float(), step)


def masked_classes(logits: Tensor) -> Tensor:
    """Which finite logits [M, C] are of masked classes: below the widest gap of a row with a range that is too wide for
    a network.

    There exp is 0 at temperatures around 1, but not at all temperatures, so that the values matter too.
    """
    if logits.shape[1] == 1:
        return torch.zeros_like(logits, dtype=torch.bool)
    ordered = logits.sort(1).values
    gap, place = ordered.diff(dim=1).max(1, keepdim=True)
    spread = ordered[:, -1:] - ordered[:, :1]
    return (logits <= ordered.gather(1, place)) & (spread > NATURAL) & (gap > spread / 2)


def _below_zero(logits: Tensor, masked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Levels -1 (the highest) to -32,768 of the masked logits, their step and offset [M, 1]."""
    high = logits.masked_fill(~masked, -torch.inf).amax(1, keepdim=True)
    low = logits.masked_fill(~masked, torch.inf).amin(1, keepdim=True)
    step = ((high - low) / (LEVELS // 2)).clamp(min=1e-30)
    return -1 - ((high - logits) / step).round().clamp(0, LEVELS // 2), step, high + step
