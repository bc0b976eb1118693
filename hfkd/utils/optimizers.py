"""What the name of an optimizer (`optim`) says about it."""

from typing import Any


def optimizer_name(optim: Any) -> str:
    """`optim` as text; TrainingArguments makes an enum of it."""
    return str(getattr(optim, "value", optim))


def steps_in_backward(optim: Any) -> bool:
    """Whether an optimizer takes each parameter's step, and drops its gradient, within the backward pass."""
    return optimizer_name(optim).endswith(("layerwise", "lomo"))
