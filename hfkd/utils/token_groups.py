"""Tokens of one text under two tokenizers -> groups that say the same: both sides of a group end at the same byte.

B rows, L length, N groups, m tokens of groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hfkd.utils.devices import OnHost
from hfkd.utils.targets import HostTargets

PLACELESS = -1  # of a token that is none of the response's, or whose place in the text is not known
UNGROUPED = -1


@dataclass(frozen=True)
class Pairing:
    """How the tokens of two networks are brought together.

    by: "bytes" groups tokens that end at the same byte of the response; "position" pairs the first token with the
    first, the second with the second, as long as both have one. end: whether the two ends of sequence are a pair too.
    late: each token's logits are read one position after those that predict it, as TRL does.
    """

    by: Literal["bytes", "position"] = "bytes"
    end: bool = False
    late: bool = False

    def of(self, ends: tuple[Any, Any], learned: tuple[Any, Any], length: int) -> tuple[list[int], list[int]]:
        """The group of each token of one row, student's and teacher's, numbered from 0; UNGROUPED for none.

        ends: where each of a side's tokens ends, in bytes of the response, which has `length`; the end of sequence ends
        at length + 1. learned: which tokens have a label. A group with a token of the response that has none is left
        out, and one with the very first token of a row, which no position predicts.
        """
        mine, its = (np.asarray(one) for one in ends)
        answers = [np.asarray(one, dtype=bool) for one in learned]
        there = [answer | (end != PLACELESS) for answer, end in zip(answers, (mine, its), strict=True)]
        kept = [one & (self.end | (end <= length)) for one, end in zip(there, (mine, its), strict=True)]
        pair = _by_bytes if self.by == "bytes" else _by_position
        groups = pair(mine, its, *kept)
        lost = {int(group[0]) for group in groups if len(group)}  # of the tokens that nothing predicts
        lost |= {
            int(one)
            for group, answer in zip(groups, answers, strict=True)
            for one in group[~answer & (group != UNGROUPED)]
        }
        if self.late:
            groups = [_readable(group, answer) for group, answer in zip(groups, answers, strict=True)]
        return _numbered(groups[0], groups[1], lost)


def _by_bytes(mine: Any, its: Any, kept: Any, its_kept: Any) -> list[Any]:
    kept, its_kept = kept & (mine != PLACELESS), its_kept & (its != PLACELESS)
    common = np.intersect1d(mine[kept], its[its_kept])
    found = []
    for ends, known in ((mine, kept), (its, its_kept)):
        number = np.searchsorted(common, ends)  # the first place that both reach, at or after this token's end
        found.append(np.where(known & (number < len(common)), number, UNGROUPED))
    return found


def _by_position(mine: Any, its: Any, kept: Any, its_kept: Any) -> list[Any]:
    count = min(kept.sum(), its_kept.sum())
    found = []
    for known in (kept, its_kept):
        number = np.cumsum(known) - 1
        found.append(np.where(known & (number < count), number, UNGROUPED))
    return found


def _readable(groups: Any, learned: Any) -> Any:
    """Those whose last token has a learned one after it: at that one's place its own logits are read late."""
    followed = np.append(learned[1:], False)
    late = set(groups[(groups != UNGROUPED) & ~followed].tolist())
    return np.where(np.isin(groups, list(late)), UNGROUPED, groups)


def _numbered(mine: Any, its: Any, lost: set[int]) -> tuple[list[int], list[int]]:
    """Groups that both sides have, without those that are `lost`, numbered anew."""
    there = np.setdiff1d(np.intersect1d(mine, its), [UNGROUPED, *lost])
    renumbered = [np.where(np.isin(one, there), np.searchsorted(there, one), UNGROUPED) for one in (mine, its)]
    return renumbered[0].tolist(), renumbered[1].tolist()


@dataclass(frozen=True)
class GroupedTokens(OnHost):
    """One network's part of a batch's groups. Tokens are its targets, in the batch's order.

    token [m]: which of the targets are in groups. group [m]: the group of each. first, last [N]: of which of these m
    the group's first and last token is.
    """

    token: Tensor
    group: Tensor
    first: Tensor
    last: Tensor

    @classmethod
    def of(cls, group: Tensor) -> "GroupedTokens":
        """group: of each target, UNGROUPED for none; ascending."""
        token = (group != UNGROUPED).nonzero().squeeze(-1)
        known = group[token]
        size = torch.bincount(known)
        last = size.cumsum(0) - 1
        return cls(token, known, last - size + 1, last)

    def __len__(self) -> int:
        return len(self.first)

    def spans(self) -> list[tuple[int, int]]:
        """From which target to which (exclusive) each group goes."""
        return list(zip(self.token[self.first].tolist(), (self.token[self.last] + 1).tolist(), strict=True))

    def part(self, groups: slice, start: int) -> "GroupedTokens":
        """Some of the groups, numbered from 0, and their tokens from target `start`."""
        first, last = self.first[groups], self.last[groups]
        tokens = slice(int(first[0]), int(last[-1]) + 1) if len(first) else slice(0, 0)
        return GroupedTokens(
            self.token[tokens] - start, self.group[tokens] - groups.start, first - tokens.start, last - tokens.start
        )


@dataclass(frozen=True)
class Groups(OnHost):
    """The groups of a batch: both networks' tokens, the row of each group [N], and the shapes of both sides' rows."""

    student: GroupedTokens
    teacher: GroupedTokens
    row: Tensor
    shapes: tuple[torch.Size, torch.Size]

    @property
    def num_rows(self) -> int:
        return self.shapes[0][0]

    @classmethod
    def of(cls, mine: tuple[HostTargets, Tensor], its: tuple[HostTargets, Tensor]) -> "Groups":
        """From each side's targets, and the group of each token of its rows [B, L], which lie on one device."""
        shapes, device = (mine[1].shape, its[1].shape), mine[1].device
        each = torch.stack([mine[1].amax(-1) + 1, its[1].amax(-1) + 1])  # [2, B] groups of a row
        assert bool((each[0] == each[1]).all()), "both sides of a row have the same groups"
        before = each[0].cumsum(0) - each[0]
        parts = []
        for targets, groups in (mine, its):
            group = groups.flatten()[targets.position + 1]
            row = targets.position // max(groups.shape[1], 1)
            parts.append(GroupedTokens.of(torch.where(group == UNGROUPED, group, group + before[row])))
        return cls(
            parts[0], parts[1], torch.repeat_interleave(torch.arange(shapes[0][0], device=device), each[0]), shapes
        )

    @property
    def of_teacher(self) -> "Groups":
        """The same groups, of the teacher's tokens on both sides."""
        return Groups(self.teacher, self.teacher, self.row, (self.shapes[1], self.shapes[1]))

    @property
    def rows_with_any(self) -> int:
        return len(torch.unique(self.row))


def byte_ends(spelled: Sequence[bytes | None], text: bytes) -> list[int]:
    """Where each token ends in `text`, in bytes; PLACELESS from the first on that is not spelled as the text is.

    spelled: what each token stands for, None where that is no text (an unknown word). A space that is none of the
    text's, as SentencePiece puts it before the first token, takes no place.
    """
    written = b"".join(piece or b"" for piece in spelled)
    blank = written[:1] == b" " and (written[1:] == text or _agreeing(written[1:], text) > _agreeing(written, text))
    ends, at = [], -int(blank)
    for piece in spelled:
        start, at = at, at + len(piece or b"")
        if piece is None or piece[max(-start, 0) :] != text[max(start, 0) : max(at, 0)]:
            break
        ends.append(max(at, 0))
    return ends + [PLACELESS] * (len(spelled) - len(ends))


def _agreeing(one: bytes, other: bytes) -> int:
    """How many bytes two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
