"""Warns of networks whose outputs are random in eval mode, in which they teach and are evaluated."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hfkd.models.calling import bare, logits_of
from hfkd.utils.devices import device_of
from hfkd.utils.random_state import generator_states

logger = logging.getLogger(__name__)

ROUNDING = 0.02  # of the largest logit: dropout changes more, and half precision less


def warn_if_random(whose: str, network: nn.Module, call: Callable[[], Any]) -> Any:
    """The output of `call`, which runs the network in eval mode on a few rows; warns if its logits are random.

    It is called again only if it has drawn random numbers of torch, which costs other networks nothing. Some draw them
    without an effect in eval mode (Wav2Vec2, for the layers that it drops in training).
    """
    device = device_of(network)
    before = generator_states(device)
    output = call()
    drawn = any(not torch.equal(one, other) for one, other in zip(before, generator_states(device), strict=True))
    if drawn and _differ(logits_of(output), logits_of(call())):
        logger.warning(
            "The %s's logits of the same rows differ from call to call in eval mode (%s): %s random. Dropout is left "
            "out in eval mode only if its layer is made in __init__, or as F.dropout(x, p, training=self.training); "
            "F.dropout(x, p), and nn.Dropout(p)(x) in forward, drop units in evaluation too.",
            whose,
            type(bare(network)).__name__,
            "what it teaches is" if whose == "teacher" else "its evaluations and predictions are",
        )
    return output


def _differ(one: Tensor, other: Tensor) -> bool:
    finite = one.isfinite() & other.isfinite()
    gap = (one - other).abs().where(finite, 0).amax()
    return bool(gap > ROUNDING * one.abs().where(finite, 0).amax())
