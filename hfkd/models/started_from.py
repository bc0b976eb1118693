"""The name of the stored weights that a model of transformers started from."""

from typing import Any

from transformers import PreTrainedModel

LOADED = "_weight_conversions"  # which from_pretrained leaves on a model
PRUNED = "hfkd_pruned_from"  # which `prune_layers` leaves


def started_from(model: Any) -> str | None:
    """The Hub id or folder of the weights; None for random ones, even if the configuration came from there."""
    if not isinstance(model, PreTrainedModel):
        return None
    return str(model.name_or_path) if hasattr(model, LOADED) else getattr(model, PRUNED, None)
