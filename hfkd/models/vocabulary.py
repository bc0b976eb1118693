"""Whether two language models speak of the same tokens."""

import logging

from torch import nn
from transformers import PreTrainedTokenizerBase

from hfkd.models.calling import output_head

logger = logging.getLogger(__name__)


def common_vocabulary(student: nn.Module, teacher: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """How many logits student and teacher share; None when they have the same number, or do not say how many.

    Embeddings are often padded to a round size (151,936 and 152,064 for one tokenizer): the shorter one cuts both.
    Raises ValueError when real tokens would be cut.
    """
    ours, theirs = vocabulary_size(student), vocabulary_size(teacher)
    return None if ours is None or theirs is None else common_size(ours, theirs, tokenizer)


def vocabulary_size(network: nn.Module) -> int | None:
    """How many logits a language model gives; None where it does not name its output embeddings."""
    head = output_head(network)
    return None if head is None else head.weight.shape[0]


def common_size(student: int, teacher: int, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """`common_vocabulary` of two networks with so many logits."""
    if student == teacher:
        return None
    common = min(student, teacher)
    if tokenizer is None or len(tokenizer) > common:
        known = "unknown, as no processing_class was given" if tokenizer is None else f"{len(tokenizer)} tokens"
        raise ValueError(
            f"the student has {student} logits and the teacher {teacher}, and the tokenizer's size is {known}: only "
            "padding may be cut; use models of one tokenizer, and pass it as processing_class; or of two, with the "
            "objective uld or gold, and pass the other one as teacher_processing_class"
        )
    logger.info("The logits of student (%d) and teacher (%d) are cut to the %d they share", student, teacher, common)
    return common


def same_tokenizer(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless both tokenizers give every token the same number."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    different = sum(ours.get(token) != theirs.get(token) for token in ours | theirs)
    raise ValueError(
        f"the tokenizers of the student{_named(student)} and the teacher{_named(teacher)} differ: {different} of "
        f"{len(ours | theirs)} tokens have another number or are in one of them only; token-level distillation needs "
        "one tokenizer, or an objective that takes two: uld or gold, with no other term beside it"
    )


def _named(tokenizer: PreTrainedTokenizerBase) -> str:
    return f" ({tokenizer.name_or_path})" if tokenizer.name_or_path else ""
