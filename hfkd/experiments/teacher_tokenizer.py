"""Flags for recipes whose teacher may have another tokenizer than the student."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfkd.losses.terms import resolve_objective, terms_of
from hfkd.models.language import load_tokenizer, refuse_unused_tokenizer
from hfkd.models.vocabulary import same_tokenizer
from hfkd.tasks.two_tokenizers import different
from hfkd.utils.flags import at_least_one, flag


@dataclass
class TeacherTokenizerArguments:
    """A teacher with another tokenizer than the student, for the objectives uld and gold."""

    teacher_tokenizer: str | None = flag(
        None,
        "Tokenizer for a teacher without its own, if it differs from tokenizer_name. Different "
        "tokenizers need the objective uld or gold.",
    )
    teacher_max_length: int | None = flag(
        None,
        "Maximum number of tokens of prompt and response for a teacher with another tokenizer (unset: "
        "max_length) or prompts of its own, whose longer rows are dropped.",
    )

    def __post_init__(self) -> None:
        at_least_one(self, "teacher_max_length")

    def both(
        self, names: tuple[str, str], tokenizer_name: str | None, args: Any
    ) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase | None]:
        """The student's tokenizer, and the teacher's, or None if it is the same.

        Raises ValueError if they differ and the objective of `args` compares token by token, and for a flag with
        another tokenizer than the networks have.
        """
        mine = load_tokenizer(names[0], tokenizer_name)
        its = load_tokenizer(names[1], self.teacher_tokenizer or tokenizer_name)
        refuse_unused_tokenizer(tokenizer_name, [mine, its])
        refuse_unused_tokenizer(self.teacher_tokenizer, [its], "teacher_tokenizer")
        takes_two = all(hasattr(term.objective, "pairing") for term in terms_of(resolve_objective(args.objective)))
        if not (takes_two and different(mine, its)):
            same_tokenizer(mine, its)
            return mine, None
        if args.teacher_cache_dir:
            raise ValueError(
                f"teacher_cache_dir={args.teacher_cache_dir!r}: student and teacher have different tokenizers, "
                "which needs the live teacher: leave it out"
            )
        return mine, its
