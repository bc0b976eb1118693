"""Error messages with remedies for failures of the Hub."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError

from hfkd.utils.command import without_secrets

# The base class of HTTP errors; the HTTP library differs between versions of huggingface_hub.
FAILURES: tuple[Any, ...] = (HfHubHTTPError.__mro__[1], ConnectionError)


def upload_again(folder: Any, name: str | None, revision: str | None = None) -> str:
    """The remedy for a failed upload. `name`: that of the repository; None: that of the folder, as in Trainer."""
    name = name or Path(str(folder)).absolute().name
    branch = "" if revision is None else f" --revision {shlex.quote(revision)}"  # which it makes if there is none
    again = f"`hf upload {name} {shlex.quote(str(folder))} . --exclude 'checkpoint-*'{branch}`"
    return f"All files are complete in the folder; to upload them again: {again}"


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Raise a failure to reach the Hub, or its refusal, as a ConnectionError of one line; let other errors through."""
    try:
        yield
    except (*FAILURES, RuntimeError) as error:
        # the client wraps errors of large files in a RuntimeError
        cause = error if isinstance(error, FAILURES) else error.__cause__
        if not isinstance(cause, FAILURES):
            raise
        reason = " ".join(without_secrets(str(cause)).split()) or type(cause).__name__
        raise ConnectionError(f"{what} failed ({reason}). {remedy}") from error
