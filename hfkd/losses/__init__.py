"""The distillation loss and its slots: items, objectives, temperatures and weightings."""

# Each file registers its slots on import. Importing them here makes all of them available, whichever module of the
# package is imported first.
from hfkd.losses import features, learned_temperature, logits, temperatures, weightings

__all__ = ["features", "learned_temperature", "logits", "temperatures", "weightings"]
