"""What comparisons of a transformer's states share: means over a row's positions, and which layers go together.

B rows, L positions, H features.
"""

from torch import Tensor


def over_positions(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of each row's values [B, L] over its positions that are no padding, [B]; of none, 0."""
    if mask is None:
        return values.mean(-1)
    weight = mask.to(values.dtype)
    # A padded position's value may be anything, also infinite: it is left out, not multiplied by 0.
    return values.masked_fill(~mask.bool(), 0.0).sum(-1) / weight.sum(-1).clamp(min=1)
