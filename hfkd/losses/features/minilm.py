"""MiniLM: relations of a layer's queries, keys and values among themselves.

B rows, L positions, A relation heads, W width of all heads, d = W / A.
"""

import math

import torch
from torch import Tensor

from hfkd.losses.features.maps import in_float32


@in_float32
def relation_divergence(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], heads: int, seen: Tensor
) -> Tensor:
    """KL of the teacher's relations from the student's, the mean over heads and over the row's positions: [B].

    Each network gives (X, X'), [B, L, W], of which R = softmax(X X'^T / sqrt(d)) is taken, head by head. seen: which
    positions [B, 1, L, L] a row of R is over; a position that sees nothing is not counted.
    """
    log_p, log_q = (_log_relation(*states, heads, seen) for states in (teacher, student))
    rows = seen.any(-1)  # [B, 1, L]
    divergence = torch.where(seen, log_p.exp() * (log_p - log_q), 0.0).sum(-1)  # [B, A, L]
    return (divergence * rows).sum((-1, -2)) / (heads * rows.sum((-1, -2)).clamp(min=1))


def _log_relation(x: Tensor, other: Tensor, heads: int, seen: Tensor) -> Tensor:
    """log softmax(X X'^T / sqrt(d)) over what is seen, [B, A, L, L]; finite everywhere."""
    x, other = (states.unflatten(-1, (heads, -1)).transpose(1, 2) for states in (x, other))  # [B, A, L, d]
    scores = x @ other.transpose(-1, -2) / math.sqrt(x.shape[-1])
    return torch.log_softmax(scores.masked_fill(~seen, torch.finfo(scores.dtype).min), -1)
