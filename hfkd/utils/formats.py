"""The versions of the files that hfkd writes and reads again, and of the rows that `datasets` keeps of its functions.

Increase a number when a file of before would be read with another meaning: another definition, unit, order, default or
hash under the same name, not only another layout. tests/test_formats.py fails when the code that decides it changes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

RUN = 1  # distillation.json, and the parameters of the loss beside it
TABLE_RUN = 1  # settings.json of the runs of a table or a chain
RESPONSES = 1  # responses.json of `hfkd generate`, and its parts
SCORES = 1  # of answers, in scores.json
TOKEN_CACHE = 2  # teacher_cache.json and its shards
IMAGE_CACHE = 2  # logits-*.bin
SCAN = 1  # scan-*.safetensors

# `datasets` finds rows that it has mapped before by the name of the function, not by its code, and by its arguments.
PIXELS = 2
PROMPTS = 5
ANSWERS = 1
TOKENS = 5
TOKENS_OF_TWO = 3
SHORT_PROMPTS = 1
LABELLED_TEXTS = 1
PLAIN_TEXTS = 1
PACKED_ROWS = 1

VERSION = "version"  # the key in files that are JSON, not in those of the first version, which earlier hfkd reads too


def refuse_other_version(file: str | Path, found: Mapping[str, Any], mine: int, remedy: str) -> None:
    """Raise ValueError if the content `found` of `file` has another version than `mine`."""
    its = found.get(VERSION, 1)
    if its != mine:
        raise ValueError(
            f"{file} has version {its} of its format, and this version of hfkd reads version {mine}, in which entries "
            f"of the same name have another meaning: {remedy}"
        )


def with_version(content: Mapping[str, Any], version: int, unmarked: int = 1) -> dict[str, Any]:
    """The content of a file, or the key of a stored result, with the version of its format.

    unmarked: the version that has no number.
    """
    return dict(content) if version == unmarked else {**content, VERSION: version}
