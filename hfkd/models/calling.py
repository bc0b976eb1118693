"""Calling any network the same way: a Hugging Face model by keyword, a bare nn.Module by position."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.trainer_utils import unwrap_peft_model


@dataclass(frozen=True)
class Call:
    """How a network takes its inputs. Built from the bare network, used on whatever wraps it (DDP, compile, autocast).

    keywords: the inputs its forward names, or None for a network called with the images alone.
    """

    keywords: frozenset[str] | None

    @classmethod
    def of(cls, model: nn.Module) -> "Call":
        # PEFT's own forward names fewer inputs than the network that it passes them on to.
        names = frozenset(inspect.signature(unwrap_peft_model(model).forward).parameters)
        takes_names = names & {"pixel_values", "input_ids"}
        return cls(names - {"labels"} if takes_names else None)

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """The logits of `inputs`; what the network does not name (index, labels, ...) stays behind."""
        if self.keywords is None:
            return logits_of(model(inputs["pixel_values"]))
        return logits_of(model(**self._named(inputs)))

    def hidden(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """The last hidden states [B, L, H] of a language model, with the logits of one position only."""
        output = model(**self._named(inputs), output_hidden_states=True, logits_to_keep=1)
        return output.hidden_states[-1]

    @property
    def takes_tokens(self) -> bool:
        """Whether this is a language model: its forward names `input_ids` and no images."""
        return self.keywords is not None and "pixel_values" not in self.keywords

    def _named(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        keywords = self.keywords or ()
        # Keys and values are kept for generating; by default each layer copies its own, in the teacher too.
        whole_sequences = {"use_cache": False} if "use_cache" in keywords else {}
        return {k: v for k, v in inputs.items() if k in keywords} | whole_sequences


def logits_of(output: Any) -> Tensor:
    """A network's logits: its output itself when that is a tensor, else the output's `.logits`."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the model returned a {type(output).__name__} without logits: return a tensor, or an object with .logits"
        )
    return logits
