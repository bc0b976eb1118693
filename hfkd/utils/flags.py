"""Fields of dataclasses that are flags of a command, and checks of flags that must be at least 1."""

from dataclasses import field
from typing import Any


def flag(default: Any, text: str) -> Any:
    """A field with a default, or a function that makes it, and its `text` in --help and in the docs."""
    told = {"help": text}
    return field(default_factory=default, metadata=told) if callable(default) else field(default=default, metadata=told)


def at_least_one(settings: object, *names: str) -> None:
    """Raise ValueError if one of the named settings is set and below 1, as 0 would be ambiguous."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be 1 or more; leave it out for the default")
