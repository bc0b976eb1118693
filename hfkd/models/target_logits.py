"""Logits for the target tokens of a batch only.

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
    """The output of `forward` of `network`, and its logits [N, V] at the targets, truncated to `num_classes`.

    `on_head`: the output head is applied to the target tokens only, by a hook, which works in any wrapper and with any
    rescaling of the logits. A compiled network ignores hooks that are added later: there the targets are picked from
    all logits.
    """
    head = output_head(network) if on_head else None
    if head is None:
        output = forward()
        logits = targets.pick(logits_of(output))
    else:
        output, logits = target_logits(head, forward, targets)
    return output, logits[:, :num_classes]


def target_logits(head: nn.Module, forward: Callable[[], Any], targets: Targets) -> tuple[Any, Tensor]:
    """The output of `forward` and its logits [N, V] at the targets; `head` gets [1, N, H] instead of [B, L, H].

    If the network does not call the head on all hidden states, the targets are picked from all logits.
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
