"""Cached teacher outputs: the k most likely classes, and one bucket for all others.

N items, C classes or vocabulary, k stored classes, S temperatures the bucket is stored for.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hfkd.losses.functional import upcast
from hfkd.losses.outputs import Outputs
from hfkd.utils.devices import constant


class TopKOutputs(Outputs):
    """Cached `Outputs`, with exact energies and entropies at the stored temperatures, and without logits.

    ids, likeliest: the k most likely classes [N, k], and their logits minus the largest logit. tails: for each T, T
    logsumexp_c(z_nc / T) over the other classes, also minus the largest logit, so that the softmax of the k + 1 numbers
    at T is exactly the teacher's distribution with all other classes in one bucket; empty when k = C. Any other
    temperature raises a ValueError that names what to store.
    """

    def __init__(
        self,
        ids: Tensor,
        likeliest: Tensor,
        tails: Mapping[float, Tensor],
        energies: Mapping[float, Tensor],
        entropies: Mapping[float, Tensor],
        num_classes: int,
    ) -> None:
        self.ids, self._likeliest, self._tails = ids, likeliest, tails
        self._energies, self._entropies, self._num_classes = energies, entropies, num_classes

    @property
    def logits(self) -> Tensor:
        raise ValueError(
            f"this slot reads all {self._num_classes} logits of the teacher, but the cache holds the "
            f"{self.ids.shape[-1]} largest: use an objective on log-probabilities (kd, jsd, ...), "
            "items.teacher.energy(T) or .entropy(T), or train without the cache"
        )

    def detach(self) -> "TopKOutputs":
        return self

    @property
    def num_classes(self) -> int:
        return self._num_classes

    def energy(self, temperature: float) -> Tensor:
        return _stored("energy", "energy_temperature", self._energies, temperature)

    def entropy(self, temperature: float) -> Tensor:
        return _stored("entropy", "entropy_temperature", self._entropies, temperature)

    @property
    def size(self) -> int:
        return len(self.ids)

    def log_probabilities(self, student: Outputs, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """[N] -> [N, k + 1] each, the last entry for all other classes; NaN if no bucket is stored for an item's T.

        Merging classes cannot increase an f-divergence (data-processing inequality), so divergences are lower bounds,
        exact with k = C. The student's bucket is a logsumexp over its other logits, which is accurate even for a tiny
        probability.
        """
        z = upcast(student.logits) / temperature.unsqueeze(-1)  # [N, C]
        coarse = z.gather(-1, self.ids)  # [N, k]
        if self.ids.shape[-1] < z.shape[-1]:
            coarse = torch.cat([coarse, tail(z, self.ids).unsqueeze(-1)], -1)
        return self._stored_log_probabilities(temperature), torch.log_softmax(coarse, dim=-1)

    def _stored_log_probabilities(self, temperature: Tensor) -> Tensor:
        # The trainer checks the temperatures when it is built; a check here would synchronise the device in each step.
        z = self._likeliest
        if self._tails:
            known = constant(tuple(self._tails), temperature.device)  # [S]
            gap = (temperature.detach().unsqueeze(-1) - known).abs()  # [N, S]
            bucket = torch.stack(list(self._tails.values()), -1).gather(-1, gap.argmin(-1, keepdim=True))
            z = torch.cat([z, bucket.where(gap.amin(-1, keepdim=True) < 1e-4, torch.nan)], -1)
        return torch.log_softmax(z / temperature.unsqueeze(-1), dim=-1)


class CapturedOutputs(TopKOutputs):
    """The log-probabilities of the k most likely classes, captured from another program.

    log p_c = z_c - logsumexp(z) determines the logits up to a constant, so that divergences are those of `TopKOutputs`.
    Energies -T logsumexp(z / T) would need that constant, and entropies the missing classes.
    """

    def energy(self, temperature: float) -> Tensor:
        raise ValueError(
            f"this slot reads the teacher's energy at temperature {temperature:g}, -T logsumexp(z / T), which "
            "captured log-probabilities do not determine: choose a slot without energies (temperature 1), or build a "
            "cache of this teacher with build_text_cache"
        )

    def entropy(self, temperature: float) -> Tensor:
        raise ValueError(
            f"this slot reads the teacher's entropy at temperature {temperature:g}, over all {self.num_classes} "
            f"classes, but only {self.ids.shape[-1]} log-probabilities of each token were captured: choose "
            "weighting='uniform', or build a cache of this teacher with build_text_cache"
        )


def tail(logits: Tensor, ids: Tensor) -> Tensor:
    """logsumexp over the classes that are not in `ids` [N, k]: [N, C] -> [N]."""
    return logits.scatter(-1, ids, float("-inf")).logsumexp(-1)


def spread(logits: Tensor, ids: Tensor) -> Tensor:
    """KL(u || p) [N] over the classes that are not in `ids` [N, k]: p the softmax of their logits [N, C], u uniform.

    The part of a divergence weighted by the student's probabilities that is lost by merging these classes into one
    bucket, if the student's probabilities are uniform over them.
    """
    others = logits.shape[-1] - ids.shape[-1]
    mean = logits.scatter(-1, ids, 0).sum(-1) / others
    return (tail(logits, ids) - mean - math.log(others)).nan_to_num(torch.inf, torch.inf).clamp(min=0)


def _stored(name: str, argument: str, values: Mapping[float, Tensor], temperature: float) -> Tensor:
    if temperature not in values:
        raise ValueError(
            f"the cache holds the teacher's {name} at temperature {' and '.join(map(str, values))}, not at "
            f"{temperature}: build a new cache with {argument}={temperature}"
        )
    return values[temperature]
