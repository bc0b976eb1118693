"""Objectives that single out the target class, under labels that MixUp, CutMix or smoothing spread over classes.

N items, C classes, c a class in the role of the target. p are the probabilities of a softmax.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def over_targets(
    labels: Tensor | None, of_target: Callable[[Tensor], Tensor], of_every: Callable[[], Tensor]
) -> Tensor:
    """`of_target(y) -> [N]` for the class ids y [N]; for mixed labels [N, C] the mean over their classes.

        sum_c label_c of_target(c)

    as cross-entropy does. MixUp and CutMix mix two images, and two classes have nearly all of the label: those with the
    largest shares are asked one by one. The others' small shares, which smoothing gives to all classes, weigh
    `of_every() -> [N, C]`, the same values for every c at once. A row of zeros, an image without a label, gives 0.
    """
    if labels is None:
        raise ValueError("this objective reads labels, and the items have none: choose kd, or give the rows labels")
    if labels.ndim == 1:
        return of_target(labels)
    shares, classes = labels.topk(2, dim=-1)  # [N, 2] both
    rest = (labels.scatter(-1, classes, 0.0) * of_every()).sum(-1)
    return shares[:, 0] * of_target(classes[:, 0]) + shares[:, 1] * of_target(classes[:, 1]) + rest


@dataclass(frozen=True)
class EveryTarget:
    """A softmax seen from every class c at once: as `decoupled` for one, [N, C] each, in a few passes over [N, C].

    The likeliest class, of which nothing may be left but rounding, is computed apart, in log space: everything is
    finite, with finite gradients, for any finite logits.
    """

    log_p: Tensor  # log p_c
    log_rest: Tensor  # log (1 - p_c)
    likeliest: Tensor  # [N, 1]

    @classmethod
    def of(cls, z: Tensor) -> "EveryTarget":
        """From logits [N, C], in float32 or wider, that were softened."""
        log_p = torch.log_softmax(z, dim=-1)
        likeliest = z.detach().argmax(-1, keepdim=True)
        others = log_p.scatter(-1, likeliest, float("-inf")).logsumexp(-1, keepdim=True)
        return cls(log_p, torch.log1p(-_without(log_p.exp(), likeliest)).scatter(-1, likeliest, others), likeliest)

    def mean_of_others(self, values: Tensor) -> Tensor:
        """[N, C] -> [N, C]: for each c the mean of `values` over the other classes, under p_k / (1 - p_c)."""
        weighted = self.log_p.exp() * values
        # The sum less one's own, which at the likeliest class would be a difference of nearly equal numbers.
        left = weighted.sum(-1, keepdim=True) - weighted
        mean = left / (1 - _without(self.log_p.exp(), self.likeliest))
        log_share = self.log_p - self.log_rest.gather(-1, self.likeliest)
        share = log_share.scatter(-1, self.likeliest, float("-inf")).exp()
        return mean.scatter(-1, self.likeliest, (share * values).sum(-1, keepdim=True))


def _without(values: Tensor, place: Tensor) -> Tensor:
    """[N, C] with 0 at each row's place [N, 1]."""
    return values.scatter(-1, place, 0.0)
