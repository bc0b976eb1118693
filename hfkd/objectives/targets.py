"""Objectives that single out the target class, under labels that MixUp or CutMix mixed.

N items, C classes.
"""

from collections.abc import Callable

from torch import Tensor


def over_targets(labels: Tensor, of_target: Callable[[Tensor], Tensor]) -> Tensor:
    """`of_target(y) -> [N]` for the class ids y [N]; for mixed labels [N, C] the mean over their classes.

        sum_c label_c of_target(c)

    as cross-entropy does. MixUp and CutMix mix two images, so two classes are looked at, those with the largest shares.
    A row of zeros, an image without a label, gives 0.
    """
    if labels.ndim == 1:
        return of_target(labels)
    shares, classes = labels.topk(2, dim=-1)  # [N, 2] both
    return shares[:, 0] * of_target(classes[:, 0]) + shares[:, 1] * of_target(classes[:, 1])
