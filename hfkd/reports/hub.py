"""Failures of the Hub that say how to go on."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError

from hfkd.utils.command import without_secrets

# The base of all that the client's HTTP library raises; the library itself differs between versions of huggingface_hub.
FAILURES: tuple[Any, ...] = (HfHubHTTPError.__mro__[1], ConnectionError)


def upload_again(folder: Any, name: str | None) -> str:
    """What to say of an upload that failed. `name`: the repository's; None: that of the folder, as Trainer has it."""
    name = name or Path(str(folder)).absolute().name
    again = f"`hf upload {name} {shlex.quote(str(folder))} . --exclude 'checkpoint-*'`"
    return f"All of it is whole there; to upload it again: {again}"


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Raise a failure to reach the Hub, or its refusal, as a ConnectionError of one line; let other errors through."""
    try:
        yield
    except (*FAILURES, RuntimeError) as error:
        # the client wraps what happened to a large file in a RuntimeError
        cause = error if isinstance(error, FAILURES) else error.__cause__
        if not isinstance(cause, FAILURES):
            raise
        reason = " ".join(without_secrets(str(cause)).split()) or type(cause).__name__
        raise ConnectionError(f"{what} failed ({reason}). {remedy}") from error
