"""TinyBERT's comparison of attention scores.

B rows, A heads, L positions.
"""

import torch
from torch import Tensor

from hfkd.losses.features.maps import in_float32


@in_float32
def scores_difference(student: Tensor, teacher: Tensor, seen: Tensor, counted: Tensor) -> Tensor:
    """The mean squared difference of the scores before the softmax, both [B, A, L, L], of each row [B].

    seen: where a query may look at a key; scores elsewhere count as equal. counted: what the mean is over. Both
    boolean, [B, 1, L, L].
    """
    squares = torch.where(seen & counted, (student - teacher).square(), 0.0)
    pairs = counted.expand_as(squares).flatten(1).sum(1)
    return squares.flatten(1).sum(1) / pairs.clamp(min=1)
