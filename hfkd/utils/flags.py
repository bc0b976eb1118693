"""Fields of dataclasses that are flags of a command."""

from dataclasses import field
from typing import Any


def flag(default: Any, text: str) -> Any:
    """A field with a default, or a function that makes it, and its `text` in --help and in the docs."""
    told = {"help": text}
    return field(default_factory=default, metadata=told) if callable(default) else field(default=default, metadata=told)
