"""The documents of packed batches. B rows, L length.

In a row that packs several documents, the `position_ids` restart with each document.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

IGNORED = -100  # the label that Hugging Face models ignore


def token_positions(position_ids: object, shape: torch.Size) -> Tensor | None:
    """`position_ids` as one number per token [B, L]; None for other shapes, such as Qwen-VL's [3, B, L]."""
    if not isinstance(position_ids, Tensor) or position_ids.shape not in (shape, (1, shape[-1]), shape[-1:]):
        return None
    return position_ids.expand(shape)


def token_mask(attention_mask: object, shape: torch.Size) -> Tensor | None:
    """`attention_mask` as bool [B, L]; None if there is none, or it has another shape."""
    return attention_mask.bool() if isinstance(attention_mask, Tensor) and attention_mask.shape == shape else None


def begins(position_ids: Tensor, attended: Tensor | None = None) -> Tensor:
    """[B, L] bool: attended tokens whose position is not above that of the previous attended token in the row.

    A document begins where the positions restart; a gap in the positions does not begin a document.
    """
    if attended is None:
        return pad(position_ids[:, 1:] <= position_ids[:, :-1], (1, 0), value=True)
    column = torch.arange(position_ids.shape[1], device=position_ids.device).expand_as(position_ids)
    latest = column.where(attended, -1).cummax(-1).values
    before = pad(latest[:, :-1], (1, 0), value=-1)  # the index of the previous attended token, -1 if there is none
    return attended & ((before < 0) | (position_ids <= position_ids.gather(1, before.clamp(min=0))))


def within_padding(attended: Tensor) -> Tensor:
    """[B, L] bool: from the first attended token of a row to its last."""
    return (attended.cumsum(-1) > 0) & (attended.flip(-1).cumsum(-1).flip(-1) > 0)


def target_mask(labels: Tensor, attended: Tensor | None = None, begin: Tensor | None = None) -> Tensor:
    """[B, L] bool: the positions whose next token has a label, and is predicted by them.

    The first token of a document (`begin`) is not predicted, and padding neither predicts nor is predicted.
    """
    wanted = labels[:, 1:] != IGNORED
    if attended is not None:
        inside = within_padding(attended)
        wanted = wanted & inside[:, 1:] & inside[:, :-1]
    if begin is not None:
        wanted = wanted & ~begin[:, 1:]
    return pad(wanted, (0, 1), value=False)


def unmasked_positions(position_ids: Tensor, attended: Tensor | None) -> Tensor:
    """The `position_ids` that separate documents without an attention mask (which would join them): 0 where masked.

    Networks start a new document at a position that does not follow the previous one, so that padding becomes separate
    documents. Raises ValueError for masked tokens inside a document, which positions cannot express.
    """
    if attended is None:
        return position_ids
    begin = begins(position_ids, attended)
    if (attended[:, 1:] & ~attended[:, :-1] & ~begin[:, 1:] & within_padding(attended)[:, :-1]).any():
        raise ValueError(
            "a packed row masks tokens inside a document, but its documents are separated by position_ids, without "
            "the attention_mask: mask padding only, or do not pack"
        )
    return position_ids.masked_fill(~attended, 0)


def positions_of(lengths: Tensor) -> Tensor:
    """The position of each token [L], from 0 in each document, for documents of these lengths."""
    starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    return torch.arange(len(starts), device=starts.device) - starts
