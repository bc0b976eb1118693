"""Attributes that have other values for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def setting(args: Any, /, **values: Any) -> Iterator[None]:
    """Context in which attributes of `args`, or of a trainer, have these values; restored afterwards."""
    before = {name: getattr(args, name) for name in values}
    vars(args).update(values)
    try:
        yield
    finally:
        vars(args).update(before)
