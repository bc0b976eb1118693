"""Generation with a causal language model.

B rows of a batch, L prompt length, V vocabulary.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.trainer_utils import unwrap_peft_model

from hfkd.models.calling import Call
from hfkd.utils.devices import device_of
from hfkd.utils.modes import in_eval_mode

ROUTER = "output_router_logits"


class OnlyKnown(LogitsProcessor):
    """Masks all tokens from `size` on: those of a padded vocabulary, which the other network may not have."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if scores.shape[-1] <= self.size:
            return scores
        known = torch.arange(scores.shape[-1], device=scores.device) < self.size
        return scores.masked_fill(~known, -torch.inf)


def can_write(network: Any) -> bool:
    """Whether a network, or that inside PEFT, has the `generate` of transformers."""
    return isinstance(bare := unwrap_peft_model(network), PreTrainedModel) and bare.can_generate()


@contextmanager
def only_for_writing(model: PreTrainedModel) -> Iterator[None]:
    """Within the context, the model is in eval mode and has an empty `generation_config`; both are restored afterwards.

    A mixture of experts computes no router loss, which needs whole rows. `generate` takes unset values from the model's
    own configuration, such as the repetition penalty of a chat model. The configuration is emptied in place, because a
    PEFT model shares the object with its base model.
    """
    own = vars(model.generation_config)
    saved = dict(own)
    routed = [c for c in (model.config, model.config.get_text_config()) if getattr(c, ROUTER, False)]
    try:
        own.clear()
        own.update(vars(GenerationConfig()))
        for config in routed:
            setattr(config, ROUTER, False)
        with in_eval_mode(model):
            yield
    finally:
        for config in routed:
            setattr(config, ROUTER, True)
        own.clear()
        own.update(saved)


def end_ids(model: PreTrainedModel, tokenizer: Any) -> set[int]:
    """The end-of-sequence id of the tokenizer, and those in the model's generation config (such as an end of turn)."""
    own = model.generation_config.eos_token_id
    mine = getattr(tokenizer, "eos_token_id", None)
    found = {*([own] if isinstance(own, int) else own or []), mine} - {None}
    return found - {_word_of(model, tokenizer)} if mine is not None else found


def record_ends(network: Any, tokenizer: Any) -> None:
    """Write `end_ids` into the generation config, which is saved: a pipeline then stops where evaluation does.

    Trainer adds the end of sequence of its `processing_class`, and keeps what is there: a class default that is a word.
    """
    model = unwrap_peft_model(network)
    if not can_write(model) or getattr(tokenizer, "eos_token_id", None) is None:
        return
    ends, own = end_ids(model, tokenizer), model.generation_config.eos_token_id
    if ends != {*([own] if isinstance(own, int) else own or [])}:
        first = tokenizer.eos_token_id
        rest = sorted(ends - {first})
        model.generation_config.eos_token_id = [first, *rest] if rest else first


def _word_of(model: PreTrainedModel, tokenizer: Any) -> int | None:
    """The end of sequence that the model's class has by default, if it is an ordinary token of the tokenizer.

    A configuration made for another tokenizer keeps the default, and so does `generation_config`: token 2 of a Llama is
    '#' in GPT-2's vocabulary.
    """
    default = getattr(type(model.config.get_text_config()), "eos_token_id", None)
    if not isinstance(default, int) or default >= len(tokenizer):
        return None
    special = default in tokenizer.all_special_ids or default in tokenizer.added_tokens_decoder
    return None if special else default


def write(
    model: PreTrainedModel,
    batch: dict[str, Tensor],
    processors: LogitsProcessorList,
    *,
    max_new_tokens: int,
    ends: Collection[int],
    pad: int,
) -> list[list[int]]:
    """New token ids for each of B left-padded prompts [B, L], up to the length of the longest answer.

    Each token is the most likely one after `processors`, the last of which may sample. Call it within
    `only_for_writing`.
    """
    batch = {name: tensor.to(device_of(model)) for name, tensor in batch.items()}
    if first := Call.of(model).first_position:
        batch["position_ids"] = batch["position_ids"] + first
    config = GenerationConfig(
        do_sample=False,  # the last logits processor samples
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
    )
    written: Any = model.generate(  # type: ignore[operator]  # GenerationMixin, a sibling of PreTrainedModel
        **batch, generation_config=config, logits_processor=processors
    )
    return written[:, batch["input_ids"].shape[1] :].tolist()
