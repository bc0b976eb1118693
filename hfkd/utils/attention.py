"""What is kept of an attention block."""

from typing import NamedTuple

from torch import Tensor


class Attention(NamedTuple):
    """What one attention block computes with, of B rows of L positions: the feature of "attention:k".

    query [B, heads, L, d], key and value [B, heads or groups of them, L, d]; scores are scale * query key^T, plus
    `mask` [B, 1 or heads, L, L] (or where it is True, if it is boolean); None: nothing is masked.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the queries."""
        return tuple(self.query.shape)

    @property
    def requires_grad(self) -> bool:
        return self.query.requires_grad or self.key.requires_grad
