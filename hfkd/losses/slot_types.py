"""What may be passed for a slot: a name or `name(key=value, ...)`, or a callable (`hfkd.losses.base`)."""

from collections.abc import Callable, Sequence

from torch import Tensor

from hfkd.losses.items import Items

# Also a sum: a list of terms, each with a coefficient or without.
ObjectiveLike = str | Callable[[Items, Tensor], Tensor] | tuple[float, "ObjectiveLike"] | Sequence["ObjectiveLike"]
TemperatureLike = str | float | Callable[[Items], Tensor]
WeightingLike = str | Callable[[Items], Tensor]
