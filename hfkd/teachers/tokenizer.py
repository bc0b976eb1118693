"""Checks that the teacher has the student's tokenizer, as logits are not comparable under different token ids."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hfkd.models.calling import Call, bare
from hfkd.models.language import TOKENIZER_FILES
from hfkd.models.vocabulary import contradict, same_tokenizer

logger = logging.getLogger(__name__)


def check_teacher_tokenizers(
    processing_class: Any, given: Any, teachers: Sequence[nn.Module], distils: bool = True
) -> None:
    """Raise ValueError for a teacher whose token ids differ from those of `processing_class`, the student's tokenizer.

    `given` is the teachers' tokenizer, or a list with one for each; otherwise it is loaded from the model's
    `name_or_path`, from local files only. A warning is logged if either is unknown. distils: whether the loss uses the
    teachers.
    """
    given = list(given) if isinstance(given, (list, tuple)) else [given] * len(teachers)
    if len(given) != len(teachers):
        raise ValueError(
            f"teacher_processing_class has {len(given)} tokenizers for {len(teachers)} teachers: pass one for each"
        )
    for tokenizer, teacher in zip(given, teachers, strict=True):
        if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(
                f"teacher_processing_class={type(tokenizer).__name__} is not a tokenizer: pass the teacher's tokenizer"
            )
        if not Call.of(teacher).takes("input_ids"):  # it is given something else, such as stored logits
            continue
        theirs = local_tokenizer(teacher) if tokenizer is None else tokenizer
        if theirs is not None and isinstance(processing_class, PreTrainedTokenizerBase):
            (compare if distils else _refuse_unasked)(processing_class, theirs)
        elif distils:
            logger.warning(
                "The tokenizers of the student and of the teacher (%s) cannot be compared, as one of them is not "
                "known: different token ids would go unnoticed. Pass processing_class and teacher_processing_class.",
                type(bare(teacher)).__name__,
            )


def _refuse_unasked(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    try:
        compare(student, teacher)
    except ValueError:
        raise ValueError(
            "the teacher's token ids differ from the student's, so that evaluating it on the student's rows "
            "would be meaningless, and kd_weight=0 does not use it: leave the teacher out"
        ) from None


def known_tokenizer(given: Any, teachers: Sequence[nn.Module]) -> Any:
    """The tokenizer of the teachers, given or stored with the first one's weights; None if unknown."""
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    first = next((one for one in several if one is not None), None)
    return local_tokenizer(teachers[0]) if first is None and teachers else first


def compare(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if a token has different ids, or an id different tokens; warn of tokens the teacher lacks."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    if contradict(student, teacher):
        same_tokenizer(student, teacher)
    unknown = sorted(set(ours) - set(theirs) - {str(student.pad_token)})
    if unknown:
        logger.warning("The teacher's tokenizer lacks %d tokens of the student's: %s", len(unknown), unknown[:5])


def local_tokenizer(teacher: nn.Module) -> PreTrainedTokenizerBase | None:
    """The tokenizer stored with the model's weights, or in the Hub's cache; nothing is downloaded."""
    name = getattr(getattr(bare(teacher), "config", None), "name_or_path", "")
    path = Path(name).expanduser() if name else None
    if path is None or path.is_file() or (path.is_dir() and not any(any(path.glob(n)) for n in TOKENIZER_FILES)):
        return None
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # any error means that the tokenizer is unknown
        logger.info("The tokenizer of %s cannot be read here (%s)", name, error)
        return None
