"""The linear layer at a network's end, for objectives that read its weight."""

from torch import nn

from hfkd.losses.context import NetworkContext


def linear_classifier(objective: str, name: str, network: NetworkContext) -> nn.Linear:
    """The linear layer that gives the classes. Raises ValueError where the network does not tell which that is."""
    inner = getattr(network.network, "timm_model", network.network)  # of transformers' wrapper
    of_network = getattr(inner, "get_classifier", None)
    classifier = of_network() if callable(of_network) else None
    if not isinstance(classifier, nn.Linear):
        raise ValueError(
            f"{objective} needs the linear classifier of the {name}, and {type(network.network).__name__} has no "
            "get_classifier() that gives one: use a network of timm's, or another objective"
        )
    return classifier
