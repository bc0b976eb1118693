"""Comparison of the vocabularies of two language models."""

import logging

from torch import nn
from transformers import PreTrainedTokenizerBase

from hfkd.models.calling import output_head

logger = logging.getLogger(__name__)


def common_vocabulary(student: nn.Module, teacher: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """The number of logits that student and teacher share; None if both have the same number, or it is not known.

    Embeddings are often padded to a round size (151,936 and 152,064 for one tokenizer): both are truncated to the
    smaller one. Raises ValueError if this would remove real tokens.
    """
    ours, theirs = vocabulary_size(student), vocabulary_size(teacher)
    return None if ours is None or theirs is None else common_size(ours, theirs, tokenizer)


def vocabulary_size(network: nn.Module) -> int | None:
    """The number of logits of a language model; None if it does not return its output embeddings, or has none."""
    weight = getattr(output_head(network), "weight", None)  # a head that was replaced may be several layers
    return None if weight is None else weight.shape[0]


def common_size(student: int, teacher: int, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """`common_vocabulary` for these numbers of logits."""
    if student == teacher:
        return None
    common = min(student, teacher)
    if tokenizer is None or len(tokenizer) > common:
        known = "unknown, as no processing_class was given" if tokenizer is None else f"{len(tokenizer)} tokens"
        raise ValueError(
            f"the student has {student} logits and the teacher {teacher}, and the tokenizer's size is {known}, but "
            "only padding of the vocabulary may be truncated: use models with the same tokenizer, and pass it as "
            "processing_class; for different tokenizers use the objective uld or gold, and pass the teacher's as "
            "teacher_processing_class"
        )
    logger.info(
        "The logits of student (%d) and teacher (%d) are truncated to the %d that both have", student, teacher, common
    )
    return common


def contradict(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> bool:
    """Whether a token has different ids, or an id different tokens. Either may have tokens that the other lacks."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    names = {number: token for token, number in theirs.items()}
    return any(theirs.get(t, n) != n or names.get(n, t) != t for t, n in ours.items())


def same_tokenizer(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless both tokenizers map every token to the same id."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    different = sum(ours.get(token) != theirs.get(token) for token in ours | theirs)
    raise ValueError(
        f"the tokenizers of the student{_named(student)} and the teacher{_named(teacher)} differ: {different} of "
        f"{len(ours | theirs)} tokens have different ids or are in one of them only. Use models with the same "
        "tokenizer, or an objective for two tokenizers: uld or gold, without other terms"
    )


def _named(tokenizer: PreTrainedTokenizerBase) -> str:
    return f" ({tokenizer.name_or_path})" if tokenizer.name_or_path else ""
