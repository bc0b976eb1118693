"""The flags that name an instruction data set, and the splits they give."""

import logging
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hfkd.data.instructions import dolly_split, to_prompt_response
from hfkd.data.pack_rows import pack_rows
from hfkd.data.text import tokenize_dataset
from hfkd.data.text_files import read_splits
from hfkd.data.two_tokenizers import tokenize_for_both
from hfkd.utils.counts import at_least_one

logger = logging.getLogger(__name__)

DOLLY_COLUMNS = {"instruction", "context", "response"}
DEV_NAMES = ("dev", "validation", "valid")


class TextData(NamedTuple):
    """train, dev: tokenised rows to learn from. dev_texts, test_texts: `prompt` and `response`, to generate from."""

    train: Dataset
    dev: Dataset | None
    dev_texts: Dataset | None
    test_texts: Dataset | None


@dataclass
class TextDataArguments:
    """Training instructions, and how they are tokenised. The defaults are those of MiniLLM and DSKD."""

    dataset_name: str = field(
        default="databricks/databricks-dolly-15k", metadata={"help": "Hub id, local folder or JSON-lines file."}
    )
    max_length: int = field(default=512, metadata={"help": "Tokens of prompt and response together."})
    max_prompt_length: int = field(default=256, metadata={"help": "Tokens of the prompt."})
    long_prompts: Literal["drop", "cut"] = field(
        default="drop", metadata={"help": "What happens to rows with a longer prompt: drop (MiniLLM) or cut (DSKD)."}
    )
    tokenization: Literal["joint", "separate"] = field(
        default="joint", metadata={"help": "Prompt and response as one text (MiniLLM) or each alone (DSKD)."}
    )
    chat_template: bool = field(default=False, metadata={"help": "Write prompts with the tokenizer's chat template."})
    packing: bool = field(
        default=False,
        metadata={
            "help": "Put several training documents into each row of max_length tokens, where they do not see each "
            "other: less padding, the same loss for the same documents. A batch of as many rows holds more documents: "
            "lower per_device_train_batch_size by the number that the log says."
        },
    )
    max_train_rows: int | None = field(default=None, metadata={"help": "Train on the first rows only: a quick try."})
    max_dev_rows: int | None = field(default=None, metadata={"help": "Evaluate on the first rows only."})

    def __post_init__(self) -> None:
        at_least_one(self, "max_length", "max_prompt_length", "max_train_rows", "max_dev_rows")

    def load(
        self,
        tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        teacher_max_length: int | None = None,
    ) -> TextData:
        """A data set in its own splits (train; dev or validation; test), Dolly in the literature's, `dolly_split`.

        What has one split only and Dolly's columns is taken for Dolly, and that is said in the log. A teacher_tokenizer
        is that of a teacher which reads tokens of its own (`hfkd.data.two_tokenizers`).
        """
        its = teacher_tokenizer, teacher_max_length
        if teacher_tokenizer is not None:
            self._refuse_for_two()
        splits = self.splits(tokenizer)
        if "train" not in splits:
            raise ValueError(f"{self.dataset_name} has the splits {sorted(splits)}: one must be called train")
        train = _first(splits["train"], self.max_train_rows)
        dev = next((_first(splits[name], self.max_dev_rows) for name in DEV_NAMES if name in splits), None)
        dev_texts, test_texts = (
            None if rows is None else to_prompt_response(rows, tokenizer, self.chat_template)
            for rows in (dev, splits.get("test"))
        )
        dev_tokens = None if dev is None else self._tokens(dev, tokenizer, *its)
        train_tokens = self._tokens(train, tokenizer, *its)
        if self.packing:
            train_tokens = pack_rows(train_tokens, self.max_length)
        return TextData(train_tokens, dev_tokens, dev_texts, test_texts)

    @property
    def generation_settings(self) -> dict[str, Any]:
        """What `TextGenerator` must know to be asked as the model was trained."""
        return {"max_prompt_length": self.max_prompt_length, "add_special_tokens": not self.chat_template}

    def splits(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Dataset]:
        """The rows of each split as they are, Dolly's as `dolly_split` makes them."""
        splits = read_splits(self.dataset_name)
        only = next(iter(splits.values()))
        if len(splits) == 1 and set(only.column_names) >= DOLLY_COLUMNS:
            found = dict(dolly_split(only, tokenizer, self.max_prompt_length))
            logger.info(
                "%s has one split and Dolly's columns, and is split as Dolly is: of its rows with a prompt of up to %d "
                "tokens the first %d are for test, the next %d for dev, the last %d for training. Splits of its own "
                "(train.jsonl, dev.jsonl) would be kept.",
                self.dataset_name,
                self.max_prompt_length,
                *(len(found[name]) for name in ("test", "dev", "train")),
            )
            return found
        return splits

    def _refuse_for_two(self) -> None:
        """Raise ValueError for what rows of two tokenizers cannot have."""
        unmet = {
            "packed rows have the student's tokens alone": ("packing", self.packing),
            "each tokenizer's template writes another text": ("chat_template", self.chat_template),
            "a cut prompt would be another text for each": ("long_prompts='cut'", self.long_prompts == "cut"),
        }
        for why, (what, asked) in unmet.items():
            if asked:
                raise ValueError(
                    f"{what} cannot be had where student and teacher have different tokenizers: {why}; leave it out"
                )

    def _tokens(
        self,
        rows: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase | None,
        teacher_max_length: int | None,
    ) -> Dataset:
        if teacher_tokenizer is not None:
            return tokenize_for_both(
                rows,
                tokenizer,
                teacher_tokenizer,
                max_length=self.max_length,
                max_prompt_length=self.max_prompt_length,
                teacher_max_length=teacher_max_length,
                tokenization=self.tokenization,
            )
        return tokenize_dataset(
            rows,
            tokenizer,
            max_length=self.max_length,
            max_prompt_length=self.max_prompt_length,
            long_prompts=self.long_prompts,
            tokenization=self.tokenization,
            chat_template=self.chat_template,
        )


def _first(dataset: Dataset, count: int | None) -> Dataset:
    return dataset if count is None else dataset.select(range(min(count, len(dataset))))
