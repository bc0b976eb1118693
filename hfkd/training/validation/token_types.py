"""Checks that a teacher which tells the two texts of a pair apart by token types gets these."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hfkd.models.calling import Call, bare
from hfkd.teachers.tokenizer import local_tokenizer

logger = logging.getLogger(__name__)

COLUMN = "token_type_ids"


def check_token_types(teachers: Sequence[nn.Module], batch: Mapping[str, Any], words: Any) -> None:
    """Raise ValueError for pairs of texts without token types, if the tokenizer that is stored with a teacher makes
    these; a warning if that is not known.

    As of rows made by the tokenizer of a DistilBERT, which makes none: for a BERT the second text is part of the first.
    words: the tokenizer of the rows.
    """
    if COLUMN in batch or not isinstance(words, PreTrainedTokenizerBase) or not _is_pair(batch.get("input_ids"), words):
        return
    for teacher in teachers:
        config = getattr(bare(teacher), "config", None)
        if COLUMN not in (Call.of(teacher).keywords or ()) or (getattr(config, "type_vocab_size", None) or 0) < 2:
            continue
        stored, name = local_tokenizer(teacher), type(bare(teacher)).__name__
        remedy = (
            f"tokenise with return_{COLUMN}=True; a network that does not take the column, as the student may, does "
            "not get it"
        )
        if stored is None:
            logger.warning(
                "The first training rows are pairs of texts without %s, by which the teacher, a %s, may have learned "
                "to tell the two apart. If so, %s.",
                COLUMN,
                name,
                remedy,
            )
        elif COLUMN in stored.model_input_names:
            raise ValueError(
                f"the first training rows are pairs of texts without {COLUMN}, by which the teacher, a {name}, tells "
                f"the two apart (its tokenizer makes them): {remedy}"
            )


def _is_pair(tokens: Any, words: PreTrainedTokenizerBase) -> bool:
    """Whether a row of `tokens` [B, L] has the form [CLS] ... [SEP] ... [SEP]."""
    start, end = words.cls_token_id, words.sep_token_id
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or start is None or end is None:
        return False
    begins = (tokens[:, 0] == start) & ((tokens == start).sum(1) == 1)  # a chunk of several texts has it elsewhere
    return bool((begins & ((tokens == end).sum(1) == 2)).any())
