"""The captured inputs of an attention function."""

from typing import NamedTuple

from torch import Tensor


class Attention(NamedTuple):
    """The inputs of one attention block's attention function, for B rows of L positions: the feature "attention:k".

    query [B, heads, L, d], key and value [B, heads or groups, L, d]; scores are scale * query key^T, plus `mask` [B, 1
    or heads, L, L] (a boolean mask is True where a query attends); None: nothing is masked.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the queries."""
        return tuple(self.query.shape)

    @property
    def requires_grad(self) -> bool:
        return self.query.requires_grad or self.key.requires_grad
