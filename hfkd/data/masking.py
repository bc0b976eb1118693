"""Token masking that is the same on any number of ranks and after resuming.

B rows, L tokens in a row.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from hfkd.data.epochs import EpochTransform, epoch_zero


@dataclass
class TokenMasking(EpochTransform):
    """Rows of tokens -> `input_ids` with masked tokens, `labels` with -100 for the others (each [L]), and `index`.

    The rule is BERT's, as in transformers' collator: of the selected tokens 80 % become the mask token, 10 % a random
    token, and 10 % are kept. The selection is a function of (seed, epoch, index), and differs between epochs. Special
    tokens, from the column `special_tokens_mask`, are not selected.
    """

    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    probability: float = 0.15
    seed: int = 0
    epoch: Tensor = field(default_factory=epoch_zero, repr=False)

    def __post_init__(self) -> None:
        if self.tokenizer.mask_token is None:
            raise ValueError(
                "the tokenizer has no mask token, which masked language modelling needs: add one "
                "(tokenizer.add_special_tokens({'mask_token': '[MASK]'}), and save it), or choose another tokenizer"
            )
        self._collator = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=self.probability)

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        columns = zip(batch["input_ids"], batch["special_tokens_mask"], self.seeds(batch["index"]), strict=True)
        masked, labels = zip(*(self._mask(*row) for row in columns), strict=True)
        return {"input_ids": list(masked), "labels": list(labels), "index": batch["index"]}

    def _mask(self, ids: list[int], special: list[int], seed: int) -> tuple[list[int], list[int]]:
        self._collator.generator = torch.Generator().manual_seed(seed)
        masked, labels = self._collator.torch_mask_tokens(torch.tensor([ids]), torch.tensor([special]))
        self._collator.generator = None  # generators cannot be pickled
        return masked[0].tolist(), labels[0].tolist()
