"""The command that started this process, fit to be published: without secrets, and without this machine's folders."""

import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import get_token

HIDDEN = "HIDDEN"  # a word that shells, YAML and Markdown leave alone
SECRET_NAME = re.compile(r"(^|[-_])(token|secret|password|passwd|key|credentials?)$", re.IGNORECASE)
SECRET_VALUE = re.compile(r"hf_\w{8,}|(?<=://)[^/@\s]+(?=@)")  # a Hub token, and a user:password before a host
SHORTEST_SECRET = 6  # a shorter value of an environment variable would black out ordinary words
# An absolute path inside an argument, such as a slot's; what follows a word, a dot, a colon or a slash is none (a URL),
# unless the URL is of a file here.
ABSOLUTE_PATH = re.compile(r"(?:(?<![\w.:/~-])~?|file://)(?:/[^\s/'\",;()]+)+/?")
NO_SCRIPT = ("", "-c", "-m")
TYPED = "HFKD_TYPED"  # set by the command `hfkd`: what was typed in place of a script, such as "hfkd image"


def command(argv: Sequence[str] | None = None) -> str | None:
    """`argv` (default: this process's) as one would type it again; None where nobody typed it (a notebook, a prompt).

    The value of every flag whose name ends in token, key, secret, ... is hidden, and so is whatever `without_secrets`
    knows. A path below the working directory stays, relative to it; of any other only the last name.
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
    """`text` with every secret hidden: `known` ones, Hub tokens, and what the environment keeps under such a name."""
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
    """A repr without the addresses that no two runs share."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)
