"""Temperatures and weightings by their names, that choose for each sample or for each item."""

import torch

from hfkd.losses.temperatures import Fitted, resolve_temperature
from hfkd.losses.weightings import Averaged, Entropy, Matched


def temperature(name, level="sample", energies=(-13.0, -12.0)):
    """Where it is fitted, as if a training set's energies lay between these two."""
    # At CTKD's own T = 15.6, T² KL hardly depends on T: theta's gradient would be rounding.
    slot = resolve_temperature("learned(start=0.3, span=1.0, warmup_epochs=0)" if name == "learned" else name)
    if isinstance(slot, Fitted):
        slot.level = level
        slot.fit(torch.linspace(*energies, 100))
    return slot


def weighting(name, level="sample"):
    entropy = Entropy(level=level)
    return {"entropy": entropy, "matched": Matched(entropy), "averaged": Averaged(entropy)}.get(name, name)
