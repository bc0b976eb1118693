"""Where the documents of a packed batch begin. B rows, L length.

A row that packs several documents says so by its `position_ids`, which start again with each of them.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

IGNORED = -100  # the label Hugging Face models skip


def token_positions(position_ids: object, shape: torch.Size) -> Tensor | None:
    """`position_ids` as one number a token [B, L]; None where they are something else, such as Qwen-VL's [3, B, L]."""
    if not isinstance(position_ids, Tensor) or position_ids.shape not in (shape, (1, shape[-1]), shape[-1:]):
        return None
    return position_ids.expand(shape)


def token_mask(attention_mask: object, shape: torch.Size) -> Tensor | None:
    """`attention_mask` as bool [B, L]; None where there is none, or one of another shape."""
    return attention_mask.bool() if isinstance(attention_mask, Tensor) and attention_mask.shape == shape else None


def begins(position_ids: Tensor, attended: Tensor | None = None) -> Tensor:
    """[B, L] bool: an attended token whose position is not above that of the attended one before it in its row.

    So a document begins where the positions start again, and a mere gap in them begins none.
    """
    if attended is None:
        return pad(position_ids[:, 1:] <= position_ids[:, :-1], (1, 0), value=True)
    column = torch.arange(position_ids.shape[1], device=position_ids.device).expand_as(position_ids)
    latest = column.where(attended, -1).cummax(-1).values
    before = pad(latest[:, :-1], (1, 0), value=-1)  # the attended token before each, -1 for none
    return attended & ((before < 0) | (position_ids <= position_ids.gather(1, before.clamp(min=0))))


def within_padding(attended: Tensor) -> Tensor:
    """[B, L] bool: neither padding before a row's first attended token nor after its last."""
    return (attended.cumsum(-1) > 0) & (attended.flip(-1).cumsum(-1).flip(-1) > 0)


def target_mask(labels: Tensor, attended: Tensor | None = None, begin: Tensor | None = None) -> Tensor:
    """[B, L] bool: the positions that predict a token, the next one, if it has a label.

    Nothing predicts the first token of a document (`begin`), and padding neither predicts nor is predicted.
    """
    wanted = labels[:, 1:] != IGNORED
    if attended is not None:
        inside = within_padding(attended)
        wanted = wanted & inside[:, 1:] & inside[:, :-1]
    if begin is not None:
        wanted = wanted & ~begin[:, 1:]
    return pad(wanted, (0, 1), value=False)


def unmasked_positions(position_ids: Tensor, attended: Tensor | None) -> Tensor:
    """The `position_ids` that keep documents apart without an attention mask, which would join them: 0 where masked.

    Networks take a position that does not follow the one before it for the first of a document, so padding becomes
    documents of its own. ValueError for a masked token inside of a document, which positions cannot say.
    """
    if attended is None:
        return position_ids
    begin = begins(position_ids, attended)
    if (attended[:, 1:] & ~attended[:, :-1] & ~begin[:, 1:] & within_padding(attended)[:, :-1]).any():
        raise ValueError(
            "a packed row masks tokens inside of a document: its documents are kept apart by their position_ids alone, "
            "without the attention_mask; mask padding only, or do not pack"
        )
    return position_ids.masked_fill(~attended, 0)


def positions_of(lengths: Tensor) -> Tensor:
    """Documents of so many tokens each -> every token's position [L]: from 0 in each document."""
    starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    return torch.arange(len(starts), device=starts.device) - starts
