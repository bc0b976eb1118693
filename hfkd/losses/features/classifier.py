"""The final linear layer of a network, for objectives that read its weight."""

from torch import nn

from hfkd.losses.context import NetworkContext


def linear_classifier(objective: str, name: str, network: NetworkContext) -> nn.Linear:
    """The final linear layer. Raises ValueError if the network has no `get_classifier()` that returns one."""
    inner = getattr(network.network, "timm_model", network.network)  # transformers wraps timm's models
    of_network = getattr(inner, "get_classifier", None)
    classifier = of_network() if callable(of_network) else None
    if not isinstance(classifier, nn.Linear):
        raise ValueError(
            f"{objective} needs the linear classifier of the {name}, but {type(network.network).__name__} has no "
            "get_classifier() that returns one: use a timm network, or another objective"
        )
    return classifier
