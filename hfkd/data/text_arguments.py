"""The flags that define an instruction dataset, and its splits."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hfkd.data.first_rows import at_most
from hfkd.data.instructions import dolly_rows, to_prompt_response
from hfkd.data.pack_rows import pack_rows
from hfkd.data.stored_templates import prompts_with_template, warn_of_other_template
from hfkd.data.teacher_columns import TEACHER_PROMPT
from hfkd.data.text import tokenize_dataset
from hfkd.data.text_files import read_splits
from hfkd.data.two_tokenizers import tokenize_for_both
from hfkd.utils.flags import at_least_one, flag

logger = logging.getLogger(__name__)

DOLLY_COLUMNS = {"instruction", "context", "response"}
DEV_NAMES = ("dev", "validation", "valid", "val")


class TextData(NamedTuple):
    """train, dev: tokenised rows for the loss. dev_texts: texts `prompt` and `response` for generation."""

    train: Dataset
    dev: Dataset | None
    dev_texts: Dataset | None


@dataclass
class TextDataArguments:
    """Training instructions, and how they are tokenised. The defaults are those of MiniLLM and DSKD."""

    dataset_name: str = flag("databricks/databricks-dolly-15k", "Hub id, local folder or JSON-lines file.")
    max_length: int = flag(512, "Tokens of prompt and response together.")
    max_prompt_length: int = flag(256, "Tokens of the prompt.")
    long_prompts: Literal["drop", "cut"] = flag(
        "drop", "Drop rows with a longer prompt (MiniLLM), or cut the prompt (DSKD). Dolly is split without them."
    )
    tokenization: Literal["joint", "separate"] = flag(
        "joint", "Tokenise prompt and response jointly as one text (MiniLLM), or separately (DSKD)."
    )
    chat_template: bool = flag(False, "Format prompts with the tokenizer's chat template.")
    answers: Literal["last", "each"] = flag(
        "last",
        "Of a chat, learn the last answer, or each one: in a row of its own, after the turns before it, "
        "with a weight and a temperature of its own.",
    )
    packing: bool = flag(
        False,
        "Pack several training documents into each row of max_length tokens, with no attention between "
        "them: less padding, and the same loss for the same documents. A batch of the same number of rows holds "
        "more documents: lower per_device_train_batch_size by the factor in the log.",
    )
    max_train_rows: int | None = flag(None, "Train on the first rows only, for a quick test.")
    max_dev_rows: int | None = flag(None, "Evaluate on the first rows only.")
    prompts_with_template: bool = field(default=False, init=False)  # found, and recorded with the run

    def __post_init__(self) -> None:
        at_least_one(self, "max_length", "max_prompt_length", "max_train_rows", "max_dev_rows")
        self.prompts_with_template = prompts_with_template(self.dataset_name)
        if self.prompts_with_template and self.chat_template:
            raise ValueError(
                f"chat_template=True, but the prompts of {self.dataset_name} were generated with the chat template and "
                "already include it: leave chat_template out"
            )

    def load(
        self,
        tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        teacher_max_length: int | None = None,
    ) -> TextData:
        """A dataset in its own splits (train; dev or validation; test), or Dolly as from `dolly_rows`.

        A dataset with a single split and Dolly's columns is split like Dolly, which is logged. teacher_tokenizer: the
        tokenizer of a teacher, if it differs from the student's (`hfkd.data.two_tokenizers`). teacher_max_length: of
        its rows, or those with a `teacher_prompt`; ValueError if there are neither.
        """
        its = teacher_tokenizer, teacher_max_length
        if teacher_tokenizer is not None:
            self._refuse_for_two()
        splits = self.splits(tokenizer)
        if "train" not in splits:
            raise ValueError(
                f"{self.dataset_name} has the splits {sorted(splits)}, but one must be named train: rename it"
            )
        if self.prompts_with_template:
            for one in filter(None, (tokenizer, teacher_tokenizer)):
                warn_of_other_template(self.dataset_name, splits["train"][0]["prompt"], one)
        apart = teacher_tokenizer is not None or TEACHER_PROMPT in splits["train"].column_names
        if teacher_max_length is not None and not apart:
            raise ValueError(
                f"teacher_max_length={teacher_max_length}: student and teacher have the same tokenizer, and the rows "
                f"no {TEACHER_PROMPT}: leave it out, and set max_length"
            )
        train = at_most(splits["train"], self.max_train_rows)
        dev = next((at_most(splits[name], self.max_dev_rows) for name in DEV_NAMES if name in splits), None)
        dev_texts = None if dev is None else self._texts(dev, tokenizer)
        dev_tokens = None if dev is None else self._tokens(dev, tokenizer, *its)
        train_tokens = self._tokens(train, tokenizer, *its)
        if self.packing:
            train_tokens = pack_rows(train_tokens, self.max_length)
        return TextData(train_tokens, dev_tokens, dev_texts)

    @property
    def generation_settings(self) -> dict[str, Any]:
        """The arguments with which `TextGenerator` prompts the model as in training."""
        return {"max_prompt_length": self.max_prompt_length, "add_special_tokens": self._special}

    @property
    def templated(self) -> bool:
        """Whether prompts are in a chat template, written here or in the rows."""
        return self.chat_template or self.prompts_with_template

    @property
    def _special(self) -> bool:
        """Whether prompts get the tokenizer's special tokens; a chat template writes its own."""
        return not self.templated

    def splits(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Dataset]:
        """The rows of each split; Dolly's as from `dolly_rows`."""
        splits = read_splits(self.dataset_name)
        only = next(iter(splits.values()))
        if len(splits) == 1 and set(only.column_names) >= DOLLY_COLUMNS:
            found = dict(dolly_rows(only, tokenizer, self.max_prompt_length))
            logger.info(
                "%s has a single split and Dolly's columns, and is split like Dolly: of its rows with a prompt of up "
                "to %d tokens (longer ones are left out, whatever long_prompts says) the first %d are for test, the "
                "next %d for dev, and the last %d for training. To use other splits, provide them as "
                "files (train.jsonl, dev.jsonl).",
                self.dataset_name,
                self.max_prompt_length,
                *(len(found[name]) for name in ("test", "dev", "train")),
            )
            return found
        return splits

    def _texts(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """The texts of rows; the responses of a chat without the special tokens that end a turn.

        Generated texts have none, and ROUGE would count their names as words.
        """
        texts = to_prompt_response(rows, tokenizer, self.chat_template, self.answers)
        if self._special:
            return texts
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        answers = [_without(response, special).strip() for response in texts["response"][:]]
        return Dataset.from_dict({"prompt": texts["prompt"][:], "response": answers})

    def _refuse_for_two(self) -> None:
        """Raise ValueError for settings that do not work with two tokenizers."""
        unmet = {
            "packed rows have the student's tokens only": ("packing", self.packing),
            "the templates of the two tokenizers write different texts": ("chat_template", self.chat_template),
            "chats need a template": ("answers='each'", self.answers == "each"),
            "a truncated prompt would be a different text for each": ("long_prompts='cut'", self.long_prompts == "cut"),
        }
        for why, (what, asked) in unmet.items():
            if asked:
                raise ValueError(
                    f"{what} does not work with different tokenizers of student and teacher: {why}; leave it out"
                )

    def _tokens(
        self,
        rows: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase | None,
        teacher_max_length: int | None,
    ) -> Dataset:
        names = ("max_length", "max_prompt_length", "tokenization")
        both: dict[str, Any] = {name: getattr(self, name) for name in names}
        both |= {"teacher_max_length": teacher_max_length, "add_special_tokens": self._special}
        if teacher_tokenizer is not None:
            return tokenize_for_both(rows, tokenizer, teacher_tokenizer, **both)
        alone = {name: getattr(self, name) for name in ("long_prompts", "chat_template", "answers")}
        return tokenize_dataset(rows, tokenizer, **both, **alone)


def _without(text: str, parts: Iterable[str]) -> str:
    for part in parts:
        text = text.replace(part, "")
    return text
