"""The command that started this process in a form for publication: without secrets and local folders."""

import io
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import get_token

HIDDEN = "HIDDEN"  # a word without special meaning in shells, YAML and Markdown
SECRET_NAME = re.compile(r"(^|[-_])(token|secret|password|passwd|key|credentials?)$", re.IGNORECASE)
# A Hub token (34 letters and digits; of a login by OAuth, a longer text), or user:password before a host. Shorter texts
# are names, such as hf_checkpoints, without which the command and the repository on a card would be wrong.
SECRET_VALUE = re.compile(r"hf_(?:[A-Za-z0-9]{30,}|(?:oauth|jwt)_[\w.-]{20,})|(?<=://)[^/@\s]+(?=@)")
SHORTEST_SECRET = 6  # shorter values of environment variables could hide ordinary words
# An absolute path inside an argument, such as that of a slot. A slash after a word, a dot, a colon or a slash is part
# of a URL instead, unless it is a file URL.
ABSOLUTE_PATH = re.compile(r"(?:(?<![\w.:/~-])~?|file://)(?:/[^\s/'\",;()]+)+/?")
NO_SCRIPT = ("", "-c", "-m")
TYPED = "HFKD_TYPED"  # set by the command `hfkd` to what was typed instead of a script, such as "hfkd image"


def print_in_any_encoding() -> None:
    """Print `?` for a character that the terminal's encoding, or that of a pipe, does not have, in place of an error.

    On Windows pipes are not in UTF-8, and the tables of a run that has ended must not be lost for an arrow in them.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # others belong to notebooks and tests
            stream.reconfigure(errors="replace")


def command(argv: Sequence[str] | None = None) -> str | None:
    """`argv` (default: that of this process) as a shell command; None in a notebook or an interactive session.

    The values of flags whose names end in token, key, secret, ... are hidden, and all that `without_secrets` hides.
    Paths below the working directory become relative to it; of other paths only the last component is kept.
    """
    script, *arguments = sys.argv if argv is None else argv
    if script in NO_SCRIPT or "ipykernel" in script:
        return None
    start = shlex.split(os.environ[TYPED]) if TYPED in os.environ and argv is None else ["python", script]
    words, hide = [_without_folders(word) for word in start], False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if hide:
            words.append(HIDDEN)
            hide = False
        elif not flag.startswith("-"):
            words.append(_without_folders(argument))
        else:
            secret = bool(SECRET_NAME.search(flag))
            hide = secret and not equals
            words.append(flag + equals + (HIDDEN if secret and equals else _without_folders(value)))
    return shlex.join(without_secrets(word) for word in words)


def without_secrets(text: str, known: Iterable[str | None] = ()) -> str:
    """`text` with secrets hidden: `known` ones, Hub tokens, and the values of environment variables with such names."""
    kept = [v for k, v in os.environ.items() if SECRET_NAME.search(k) and len(v) >= SHORTEST_SECRET]
    for secret in filter(None, (*known, get_token(), *kept)):
        text = text.replace(secret, HIDDEN)
    return SECRET_VALUE.sub(HIDDEN, text)


def _without_folders(value: str) -> str:
    path = Path(value)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    if path.is_absolute() or value.startswith("~") or ".." in path.parts:
        return path.name
    return ABSOLUTE_PATH.sub(lambda found: Path(found[0]).name, value)


def without_addresses(text: str) -> str:
    """A repr without memory addresses, which differ between runs."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)
