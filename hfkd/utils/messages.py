"""Parts of messages."""

import difflib
from collections.abc import Iterable

SHOWN = 3


def some(names: Iterable[str]) -> str:
    """The first of `names`."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'kd'?)", if a known name is like `name`; otherwise nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
