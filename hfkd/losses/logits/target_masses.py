"""Objectives that treat the target class separately, with labels from MixUp, CutMix or label smoothing.

N items, C classes, c a class taken as the target. p are softmax probabilities.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def over_targets(
    labels: Tensor | None, of_target: Callable[[Tensor], Tensor], of_every: Callable[[], Tensor]
) -> Tensor:
    """`of_target(y) -> [N]` for class ids y [N]; for mixed labels [N, C] the mean over classes, weighted by the labels.

        sum_c label_c of_target(c)

    as in the cross-entropy. MixUp and CutMix mix two images, so that two classes have nearly all of the label: for the
    two largest shares, `of_target` is evaluated separately. The small shares of the others, from label smoothing,
    weight `of_every() -> [N, C]`, the same values for all c at once. A row of zeros, an image without a label, gives 0.
    """
    if labels is None:
        raise ValueError("this objective needs labels, but the items have none: use kd, or give the rows labels")
    if labels.ndim == 1:
        return of_target(labels)
    shares, classes = labels.topk(2, dim=-1)  # [N, 2] both
    rest = (labels.scatter(-1, classes, 0.0) * of_every()).sum(-1)
    return shares[:, 0] * of_target(classes[:, 0]) + shares[:, 1] * of_target(classes[:, 1]) + rest


@dataclass(frozen=True)
class EveryTarget:
    """`decoupled` with each class c in turn as the target, [N, C] each, computed in a few passes over [N, C].

    For the most likely class, 1 - p_c may be only rounding error, so it is computed separately in log space: all values
    and gradients are finite for any finite logits.
    """

    log_p: Tensor  # log p_c
    log_rest: Tensor  # log (1 - p_c)
    likeliest: Tensor  # [N, 1]

    @classmethod
    def of(cls, z: Tensor) -> "EveryTarget":
        """From logits [N, C] that are divided by the temperature, in float32 or wider."""
        log_p = torch.log_softmax(z, dim=-1)
        likeliest = z.detach().argmax(-1, keepdim=True)
        others = log_p.scatter(-1, likeliest, float("-inf")).logsumexp(-1, keepdim=True)
        return cls(log_p, torch.log1p(-_without(log_p.exp(), likeliest)).scatter(-1, likeliest, others), likeliest)

    def mean_of_others(self, values: Tensor) -> Tensor:
        """[N, C] -> [N, C]: for each c the mean of `values` over the other classes, with weights p_k / (1 - p_c)."""
        weighted = self.log_p.exp() * values
        # The sum without the class itself. For the most likely class this would cancel, so it is replaced below.
        left = weighted.sum(-1, keepdim=True) - weighted
        mean = left / (1 - _without(self.log_p.exp(), self.likeliest))
        log_share = self.log_p - self.log_rest.gather(-1, self.likeliest)
        share = log_share.scatter(-1, self.likeliest, float("-inf")).exp()
        return mean.scatter(-1, self.likeliest, (share * values).sum(-1, keepdim=True))


def _without(values: Tensor, place: Tensor) -> Tensor:
    """`values` [N, C] with 0 at index `place` [N, 1] of each row."""
    return values.scatter(-1, place, 0.0)
