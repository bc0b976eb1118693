"""Networks that return probabilities, or their logarithms, where the loss expects logits."""

import torch
from torch import Tensor

from hfkd.losses.temperatures import Fitted
from hfkd.models.calling import class_dim

EXACT, ROUNDED = 1e-4, 1e-2  # how far a sum of probabilities may be from 1: in float32, in half precision


def refuse_probabilities(network: str, logits: Tensor) -> None:
    """Raise ValueError for the output of a softmax, of which the loss would take the softmax once more."""
    z, dim = logits.float(), class_dim(logits)
    if z.shape[dim] < 2 or not z.numel() or bool((z < 0).any()) or bool(((z == 0) | (z == 1)).all()):
        return
    if bool(((z.sum(dim) - 1).abs() < _tolerance(logits)).all()):
        raise ValueError(
            f"the {network} returns probabilities (its outputs are 0 or more and sum to 1), and the loss takes their "
            "softmax: return what its last softmax gets, or the logarithm of the probabilities"
        )


def refuse_log_probabilities(temperature: object, logits: Tensor) -> None:
    """Raise ValueError for a teacher's log-probabilities, which say nothing of its energy, if the temperature needs it.

    -T logsumexp(log p / T) is 0 at T = 1 for all inputs.
    """
    z, dim = logits.float(), class_dim(logits)
    if (
        isinstance(temperature, Fitted)
        and z.numel()
        and bool((torch.logsumexp(z, dim).abs() < _tolerance(logits)).all())
    ):
        raise ValueError(
            f"the teacher returns log-probabilities, and {temperature!r} needs its energies -T logsumexp(z / T), which "
            "only its logits z determine: return what its last log_softmax gets, or choose another temperature"
        )


def _tolerance(logits: Tensor) -> float:
    return ROUNDED if logits.dtype in (torch.float16, torch.bfloat16) else EXACT
