"""Calling any network the same way: a Hugging Face model by keyword, a bare nn.Module by position."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """How a network takes its inputs. Built from the bare network, used on whatever wraps it (DDP, compile, autocast).

    keywords: the inputs its forward names, or None for a network called with the images alone.
    """

    keywords: frozenset[str] | None

    @classmethod
    def of(cls, model: nn.Module) -> "Call":
        names = frozenset(inspect.signature(model.forward).parameters)
        takes_names = names & {"pixel_values", "input_ids"}
        return cls(names - {"labels"} if takes_names else None)

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """The logits of `inputs`; what the network does not name (index, labels, ...) stays behind."""
        if self.keywords is None:
            return logits_of(model(inputs["pixel_values"]))
        return logits_of(model(**{k: v for k, v in inputs.items() if k in self.keywords}))


def logits_of(output: Any) -> Tensor:
    """A network's logits: its output itself when that is a tensor, else the output's `.logits`."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the model returned a {type(output).__name__} without logits: return a tensor, or an object with .logits"
        )
    return logits
