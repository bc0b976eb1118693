"""Outputs for items that are groups of tokens, for two networks with different tokenizers.

n target tokens of a network, m of them in groups, N groups, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfkd.losses.functional import upcast
from hfkd.losses.outputs import Outputs
from hfkd.utils.devices import send
from hfkd.utils.token_groups import GroupedTokens

FLOOR = 1e-8  # probabilities are clamped to at least this value, as in TRL


@dataclass(frozen=True)
class GroupOutputs(Outputs):
    """One network's outputs for groups of tokens. `logits` [n, V] are those of all its target tokens, grouped or not.

    labels [n]: the target tokens. grouped: which of them are in which group. same [k]: the vocabulary entries that both
    networks have, in the same order for both. late: the logits of a token are read one target later. Energy and entropy
    of a group are the means over its tokens.
    """

    labels: Tensor | None = None
    grouped: GroupedTokens | None = None
    same: Tensor | None = None
    late: bool = False

    @property
    def size(self) -> int:
        assert self.grouped is not None
        return len(self.grouped)

    def of_items(self, values: Tensor) -> Tensor:
        assert self.grouped is not None
        return group_means(values, self.grouped)

    def merged(self, temperature: Tensor, last: bool) -> Tensor:
        """The merged probabilities of each group [N, V] at its temperature [N].

        They are the probabilities at the group's first token, times the probabilities of its later tokens; with `last`,
        those at its last token, times the probabilities of its earlier tokens. The factors are clamped to at least
        FLOOR, and the product is not normalised.
        """
        token, group, first, end = self._places()
        chosen, softened = end if last else first, temperature.index_select(0, group).unsqueeze(-1)  # [m, 1]
        read = token + int(self.late)
        z = upcast(self.logits.index_select(0, read.index_select(0, chosen)))
        merged = torch.softmax(z / softened.index_select(0, chosen), dim=-1)  # [N, V]
        if len(token) == self.size:
            return merged
        others = torch.ones_like(token, dtype=torch.bool).index_fill(0, chosen, False).nonzero().squeeze(-1)
        assert self.labels is not None
        z = upcast(self.logits.index_select(0, read.index_select(0, others))) / softened.index_select(0, others)
        own = self.labels.index_select(0, token.index_select(0, others)).unsqueeze(-1)
        p = (z.gather(-1, own).squeeze(-1) - z.logsumexp(-1)).exp().clamp(min=FLOOR)  # [m - N]
        log = torch.zeros_like(merged[:, 0]).index_add(0, group.index_select(0, others), p.log())
        return merged * log.exp().unsqueeze(-1)

    def _places(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert self.grouped is not None
        g, device = self.grouped, self.logits.device
        return send(g.token, device), send(g.group, device), send(g.first, device), send(g.last, device)

    def energy(self, temperature: float) -> Tensor:
        return self.of_items(super().energy(temperature))

    def entropy(self, temperature: float) -> Tensor:
        return self.of_items(super().entropy(temperature))

    def log_probabilities(self, student: Outputs, temperature: Tensor) -> tuple[Tensor, Tensor]:
        raise ValueError(
            "student and teacher have different tokenizers, so that their classes cannot be compared one by one: use "
            "the objective uld or gold"
        )


def group_means(values: Tensor, grouped: GroupedTokens) -> Tensor:
    """Values [n] of a network's target tokens -> [N]: the mean over the tokens of each group."""
    token, group = send(grouped.token, values.device), send(grouped.group, values.device)
    values = values.index_select(0, token)
    sums = values.new_zeros(len(grouped)).index_add(0, group, values)
    return sums / values.new_zeros(len(grouped)).index_add(0, group, torch.ones_like(values))
