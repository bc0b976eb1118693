"""What accelerate leaves on a network that it has prepared for an earlier trainer."""

from torch import nn

MARK, INNER = "_is_accelerate_prepared", "_original_forward"


def unprepared(network: nn.Module) -> None:
    """Remove the autocast around a network's forward, and the mark by which accelerate does not prepare it again.

    With these it would compute in the precision of the trainer before, whatever the next one's arguments say.
    """
    attributes = vars(network)
    attributes.pop(MARK, None)
    inner = attributes.pop(INNER, None)
    if inner is None:
        return
    attributes.pop("forward", None)
    if getattr(inner, "__func__", None) is not type(network).forward:  # one of the network's own
        attributes["forward"] = inner
