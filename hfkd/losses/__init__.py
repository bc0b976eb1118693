"""The one equation and its slots: items, objectives, temperatures, weightings."""

# Each file registers its slots: with the package they are all there, whichever module of it is imported first.
from hfkd.losses import features, learned_temperature, logits, temperatures, weightings

__all__ = ["features", "learned_temperature", "logits", "temperatures", "weightings"]
