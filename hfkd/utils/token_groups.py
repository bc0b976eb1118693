"""Alignment of the tokens of two tokenizers: groups of tokens that end at the same byte of the text.

B rows, L length, N groups, m tokens in groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hfkd.utils.devices import OnHost
from hfkd.utils.targets import HostTargets

PLACELESS = -1  # the end of a token outside of the response, or at an unknown place
UNGROUPED = -1


@dataclass(frozen=True)
class Pairing:
    """How the tokens of two networks are aligned.

    by: "bytes" groups tokens that end at the same byte of the response; "position" pairs the n-th tokens of both, up to
    the shorter length. end: whether the end-of-sequence tokens are paired too. late: the logits of each token are read
    one position later than those that predict it, as in TRL.
    """

    by: Literal["bytes", "position"] = "bytes"
    end: bool = False
    late: bool = False

    def of(self, ends: tuple[Any, Any], learned: tuple[Any, Any], length: int) -> tuple[list[int], list[int]]:
        """The group of each token in a row of the student and the teacher, numbered from 0; UNGROUPED for none.

        ends: the end of each token, in bytes of the response of `length` bytes; the end of sequence is at length + 1.
        learned: which tokens have a label. Groups with an unlabelled response token are left out, and groups with the
        first token of a row, which is not predicted.
        """
        mine, its = (np.asarray(one) for one in ends)
        answers = [np.asarray(one, dtype=bool) for one in learned]
        there = [answer | (end != PLACELESS) for answer, end in zip(answers, (mine, its), strict=True)]
        kept = [one & (self.end | (end <= length)) for one, end in zip(there, (mine, its), strict=True)]
        pair = _by_bytes if self.by == "bytes" else _by_position
        groups = pair(mine, its, *kept)
        lost = {int(group[0]) for group in groups if len(group)}  # groups of first tokens, which are not predicted
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
        number = np.searchsorted(common, ends)  # the first common end at or after that of the token
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
    """Keep groups whose last token is followed by a labelled one, at whose position its logits are read."""
    followed = np.append(learned[1:], False)
    late = set(groups[(groups != UNGROUPED) & ~followed].tolist())
    return np.where(np.isin(groups, list(late)), UNGROUPED, groups)


def _numbered(mine: Any, its: Any, lost: set[int]) -> tuple[list[int], list[int]]:
    """The groups on both sides, without those in `lost`, renumbered."""
    there = np.setdiff1d(np.intersect1d(mine, its), [UNGROUPED, *lost])
    renumbered = [np.where(np.isin(one, there), np.searchsorted(there, one), UNGROUPED) for one in (mine, its)]
    return renumbered[0].tolist(), renumbered[1].tolist()


@dataclass(frozen=True)
class GroupedTokens(OnHost):
    """One network's part of the groups of a batch. Tokens are its targets, in order.

    token [m]: the targets that are in groups. group [m]: the group of each. first, last [N]: the index into these m of
    the first and last token of each group.
    """

    token: Tensor
    group: Tensor
    first: Tensor
    last: Tensor

    @classmethod
    def of(cls, group: Tensor) -> "GroupedTokens":
        """group: the group of each target, ascending, or UNGROUPED."""
        token = (group != UNGROUPED).nonzero().squeeze(-1)
        known = group[token]
        size = torch.bincount(known)
        last = size.cumsum(0) - 1
        return cls(token, known, last - size + 1, last)

    def __len__(self) -> int:
        return len(self.first)

    def spans(self) -> list[tuple[int, int]]:
        """The first target of each group, and the one after its last."""
        return list(zip(self.token[self.first].tolist(), (self.token[self.last] + 1).tolist(), strict=True))

    def part(self, groups: slice, start: int) -> "GroupedTokens":
        """Some of the groups, with groups numbered from 0 and tokens from target `start`."""
        first, last = self.first[groups], self.last[groups]
        tokens = slice(int(first[0]), int(last[-1]) + 1) if len(first) else slice(0, 0)
        return GroupedTokens(
            self.token[tokens] - start, self.group[tokens] - groups.start, first - tokens.start, last - tokens.start
        )


@dataclass(frozen=True)
class Groups(OnHost):
    """The groups of a batch: the tokens of both networks, the row of each group [N], and the shapes of both sides."""

    student: GroupedTokens
    teacher: GroupedTokens
    row: Tensor
    shapes: tuple[torch.Size, torch.Size]

    @property
    def num_rows(self) -> int:
        return self.shapes[0][0]

    @classmethod
    def of(cls, mine: tuple[HostTargets, Tensor], its: tuple[HostTargets, Tensor]) -> "Groups":
        """From the targets of each side and the group of each token [B, L], on the same device."""
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
        """The same groups with the teacher's tokens on both sides."""
        return Groups(self.teacher, self.teacher, self.row, (self.shapes[1], self.shapes[1]))

    @property
    def rows_with_any(self) -> int:
        return len(torch.unique(self.row))


def byte_ends(spelled: Sequence[bytes | None], text: bytes) -> list[int]:
    """The end of each token in `text` in bytes; PLACELESS from the first token on that differs from the text.

    spelled: the bytes of each token, None for tokens without text (an unknown word). A space that is not in the text,
    as added by SentencePiece before the first token, has no length.
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
    """The length of the common prefix of two texts."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
