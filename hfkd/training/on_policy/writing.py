"""Generates responses; each depends on the network, the prompt, the seed, the row and the step only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from hfkd.data.text_collate import TokenCollator, padding_id
from hfkd.models.on_policy_arguments import OnPolicyArguments
from hfkd.models.sampling import sampling_processors
from hfkd.models.writing import OnlyKnown, end_ids, only_for_writing, write
from hfkd.utils.devices import device_of


@dataclass
class ResponseWriter:
    """`writer(model, prompts, rows, step)` -> the new tokens of each response, including its end of sequence.

    A response is sampled with a generator seeded by (seed, row, step): it does not depend on the batch it is generated
    in, nor on the number of processes, except for rounding in the model. `known`: only token ids below it are generated
    (None: all). `others`: networks whose ends of sequence end a response too. A response that ends at once is just its
    end of sequence; one of maximum length has none.
    """

    settings: OnPolicyArguments
    tokenizer: PreTrainedTokenizerBase | None
    seed: int
    known: int | None = None
    others: Sequence[PreTrainedModel] = ()

    def __call__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], rows: Sequence[int], step: int
    ) -> list[list[int]]:
        """Generate responses. Raises ValueError if the model generates no token."""
        ends = self.ends(model)
        written: dict[int, list[int]] = {}
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))  # similar lengths per batch
        size = self.settings.on_policy_batch_size or max(len(order), 1)
        with only_for_writing(model):
            for start in range(0, len(order), size):
                some = order[start : start + size]
                new = self._some(model, [prompts[i] for i in some], [(rows[i], step) for i in some], ends)
                written |= {i: up_to_end(tokens, ends) for i, tokens in zip(some, new, strict=True)}
        for i, response in written.items():
            if not response:
                raise ValueError(
                    f"{type(model).__name__}.generate returned no new token for the prompt of row {rows[i]}: it "
                    "must return the prompt's tokens followed by the new ones, as in transformers"
                )
        return [written[i] for i in range(len(prompts))]

    def ends(self, model: PreTrainedModel) -> set[int]:
        """The tokens that end a response of this model."""
        return {end for one in (model, *self.others) for end in end_ids(one, self.tokenizer)}

    @property
    def pad(self) -> int:
        return 0 if self.tokenizer is None else padding_id(self.tokenizer)

    def _some(self, model: Any, prompts: list[Any], draws: list[tuple[int, int]], ends: set[int]) -> list[list[int]]:
        settings = self.settings
        batch = TokenCollator(self.pad, padding_side="left")([{"input_ids": list(prompt)} for prompt in prompts])
        processors = LogitsProcessorList([] if self.known is None else [OnlyKnown(self.known)])
        processors += sampling_processors(
            draws,
            self.seed,
            device_of(model),
            temperature=settings.on_policy_temperature,
            top_k=settings.on_policy_top_k,
            top_p=settings.on_policy_top_p,
            no_repeat_ngram_size=0,
        )
        return write(
            model, batch, processors, max_new_tokens=settings.on_policy_max_new_tokens, ends=ends, pad=self.pad
        )


def up_to_end(tokens: Sequence[int], ends: set[int]) -> list[int]:
    """The tokens up to and including the first end of sequence."""
    stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:stop])
