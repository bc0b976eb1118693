"""The flags that define a teacher and a student for text, and their common tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfkd.models.language import DTYPES, brings_tokenizer, load_tokenizer, refuse_unused_tokenizer
from hfkd.models.pruned_student import PrunedStudentArguments
from hfkd.models.text_networks import fresh_network, is_model_type, stored_network, text_teacher
from hfkd.models.vocabulary import same_tokenizer
from hfkd.models.wordpiece import train_wordpiece
from hfkd.utils.dependent_settings import refuse_without_effect
from hfkd.utils.flags import at_least_one, flag


@dataclass
class TextNetworkArguments(PrunedStudentArguments):
    """Teacher and student. Both use the teacher's tokenizer."""

    teacher_name_or_path: str | None = flag(
        None, "Teacher: a Hub id or a folder. With kd_weight 0 only its tokenizer is used, unless evaluate_kl is set."
    )
    student_name_or_path: str = flag(
        "google/bert_uncased_L-2_H-128_A-2",
        "Student: a Hub id or a folder; with from_config also a model type, such as bert.",
    )
    from_config: bool = flag(False, "Initialise the student with random weights.")
    student_config: str | None = flag(
        None, "With from_config: settings of its configuration, such as num_hidden_layers=2,hidden_size=128."
    )
    teacher_from_config: bool = flag(
        False, "Initialise the teacher with random weights: only useful to try the script offline."
    )
    teacher_config: str | None = flag(None, "With teacher_from_config: settings of the teacher's configuration.")
    teacher_dtype: str = flag("auto", "auto (as stored), float32, bfloat16 or float16.")
    ignore_mismatched_sizes: bool = flag(False, "Replace the head of a stored student that has other classes.")
    tokenizer_name: str | None = flag(None, "Tokenizer for networks without one, such as a configuration.")
    train_tokenizer: int | None = flag(
        None, "Instead of tokenizer_name: train a WordPiece tokenizer of this many tokens on the training texts."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "train_tokenizer")
        fresh = next((name for name in ("from_config", "teacher_from_config") if getattr(self, name)), None)
        self.student_name_or_path = self.teacher_as_student(self.student_name_or_path, self.teacher_name_or_path, fresh)
        if self.teacher_dtype not in DTYPES:
            raise ValueError(f"unknown teacher_dtype {self.teacher_dtype!r}: pass one of {list(DTYPES)}")
        refuse_without_effect(self)
        if self.tokenizer_name and self.train_tokenizer:
            raise ValueError(
                f"tokenizer_name={self.tokenizer_name!r} and train_tokenizer={self.train_tokenizer} are both set: "
                "leave one out"
            )
        weights = [name for name, fresh in self._networks if not fresh]
        if self.train_tokenizer and weights:
            raise ValueError(
                f"train_tokenizer={self.train_tokenizer}, but {weights[0]} has stored weights, which belong to its "
                "own tokenizer: train a tokenizer only for random weights (from_config), or leave train_tokenizer out"
            )

    def check_teacher(self, kd_weight: float) -> None:
        """Raise ValueError for distillation without a teacher, before anything is loaded."""
        if not self.teacher_name_or_path and kd_weight:
            raise ValueError(
                f"kd_weight={kd_weight} needs a teacher: pass --teacher_name_or_path, or --kd_weight 0 --ce_weight 1 "
                "to train on labels only"
            )

    def tokenizer(self, texts: Sequence[str]) -> PreTrainedTokenizerBase:
        """The tokenizer of the teacher, the student or `tokenizer_name`, or one trained on `texts`, with a pad token.

        Raises ValueError if both have stored weights and different tokenizers, if there is no tokenizer, and if
        `tokenizer_name` is another than that of a network, which is used.
        """
        stored = [load_tokenizer(name) for name, fresh in self._networks if not fresh and brings_tokenizer(name)]
        if len(stored) == 2:
            same_tokenizer(student=stored[1], teacher=stored[0])
        others = [name for name, fresh in self._networks if fresh and not is_model_type(name)]
        named = [*filter(brings_tokenizer, others), *([self.tokenizer_name] if self.tokenizer_name else [])]
        if self.train_tokenizer:
            tokenizer = train_wordpiece(texts, self.train_tokenizer)
        elif stored or named:
            tokenizer = stored[0] if stored else load_tokenizer(named[0])
        else:
            names = " and ".join(name for name, _ in self._networks)
            raise ValueError(f"{names} have no tokenizer: pass --tokenizer_name, or --train_tokenizer TOKENS")
        refuse_unused_tokenizer(self.tokenizer_name, [tokenizer])
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @property
    def _networks(self) -> list[tuple[str, bool]]:
        """The names of teacher and student, and whether each has random weights, which fit any tokenizer."""
        taught = [(self.teacher_name_or_path, self.teacher_from_config)] if self.teacher_name_or_path else []
        return [*taught, (self.student_name_or_path, self.from_config)]

    def student(self, auto: Any, tokenizer: PreTrainedTokenizerBase, **labels: Any) -> PreTrainedModel:
        """The student with the head of a transformers Auto class, and its `labels`."""
        name = self.student_name_or_path
        if self.from_config:
            return self.pruned(fresh_network(auto, name, tokenizer, self.student_config, **labels))
        mismatched = self.ignore_mismatched_sizes
        return self.pruned(stored_network(auto, name, tokenizer, ignore_mismatched_sizes=mismatched, **labels))

    def teacher(self, auto: Any, tokenizer: PreTrainedTokenizerBase, **labels: Any) -> PreTrainedModel | None:
        """The teacher; `labels` are for random weights, a stored teacher has its own."""
        name = self.teacher_name_or_path
        if not name:
            return None
        if self.teacher_from_config:
            return fresh_network(auto, name, tokenizer, self.teacher_config, **labels)
        return text_teacher(auto, name, tokenizer, self.teacher_dtype)
