"""Logits for the target tokens of a batch alone.

B rows, L length, N target tokens, V vocabulary, H hidden size.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from hfkd.models.calling import logits_of, output_head
from hfkd.utils.targets import Targets


def outputs_at_targets(
    network: nn.Module, forward: Callable[[], Any], targets: Targets, num_classes: int | None, on_head: bool
) -> tuple[Any, Tensor]:
    """What `forward` of `network` returns, and its logits [N, V] at the targets, cut to `num_classes`.

    `on_head`: its output head sees these tokens alone. Works inside of the network's own forward, whatever wraps it and
    whatever it does to its logits; a compiled one knows no hooks that come later, so picks afterwards.
    """
    head = output_head(network) if on_head else None
    if head is None:
        output = forward()
        logits = targets.pick(logits_of(output))
    else:
        output, logits = target_logits(head, forward, targets)
    return output, logits[:, :num_classes]


def target_logits(head: nn.Module, forward: Callable[[], Any], targets: Targets) -> tuple[Any, Tensor]:
    """What `forward` returns and its logits [N, V] at the targets, by handing the `head` [1, N, H] for [B, L, H].

    A network that does not call that head on whole hidden states gives all logits, picked afterwards.
    """
    picked = False

    def only_targets(head: nn.Module, states: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal picked
        if not states or not isinstance(states[0], Tensor) or states[0].shape[:2] != targets.shape:
            return None
        picked = True
        return targets.pick(states[0]).unsqueeze(0), *states[1:]

    hook = head.register_forward_pre_hook(only_targets)
    try:
        output = forward()
    finally:
        hook.remove()
    logits = logits_of(output)
    return output, logits.squeeze(0) if picked else targets.pick(logits)
