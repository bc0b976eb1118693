"""What is refused, and how: one table of bad inputs, for tests/test_bad_input.py and docs/errors.md.

Each entry makes its input in the folder it is given and returns the call that has to refuse it.
`python tests/bad_input.py` writes docs/errors.md.
"""

import re
import sys
import tempfile
from pathlib import Path

from bad_boxes import BOXES
from bad_calls import CALLS, FLAGS
from bad_captured import CAPTURED
from bad_commands import COMMANDS
from bad_features import FEATURES
from bad_files import CHECKPOINTS, DATA, REST
from bad_habits import HABITS
from bad_heads import HEADS
from bad_masks import MASKS
from bad_on_policy import ON_POLICY
from bad_settings import SETTINGS
from bad_training import ARGUMENTS, SLOTS, TRAINER
from bad_two_tokenizers import TWO_TOKENIZERS

TABLE = {
    "Slots": SLOTS,
    "Arguments and YAML": ARGUMENTS,
    "Flags of recipes": FLAGS,
    "Launches, commands and folders": COMMANDS,
    "The trainer": TRAINER,
    "Settings that do not go together": SETTINGS,
    "Scripts written for Trainer": HABITS,
    "Inner features": FEATURES,
    "Responses that networks write": ON_POLICY,
    "Two tokenizers": TWO_TOKENIZERS,
    "Log-probabilities that others captured": CAPTURED,
    "Heads and labels": HEADS,
    "Masks": MASKS,
    "Boxes": BOXES,
    "Checkpoints and networks": CHECKPOINTS,
    "Data": DATA,
    "Tokenizers, scans, generation, results": REST,
    "Functions of the Python API": CALLS,
}


def message(make, folder):
    """What the call says, its first line, with the folder and what differs between machines left out."""
    call = make(folder)
    before = content(folder)
    try:
        call()
    except (ValueError, OSError) as error:
        said = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    else:
        raise AssertionError("it was accepted")
    assert content(folder) == before, "it left something behind"
    said = said.replace(f"{folder}/", "").replace(str(folder), "FOLDER")
    said = re.sub(r"scan-[0-9a-f]+", "scan-...", said)
    return re.sub(r"\[('[^']+', '[^']+')(, '[^']+'){5,}\]", r"[\1, ...]", said)  # choices, which may grow


def content(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(Path(folder).rglob("*"))}


def document(said):
    """docs/errors.md: `said` holds the message of every entry."""
    lines = [
        "# Bad input and what it is told",
        "",
        "Everything here is refused before the first step, and before anything is written. This page is written by",
        "`python tests/bad_input.py` and checked by `tests/test_bad_input.py`; FOLDER is a folder of the test's.",
    ]
    for section, entries in TABLE.items():
        lines += ["", f"## {section}", "", "| input | message |", "|---|---|"]
        lines += [f"| {cell(name)} | {cell(said[name])} |" for name in entries]
    return "\n".join(lines) + "\n"


def cell(words):
    return "`" + words.replace("|", "\\|") + "`" if "`" not in words else words.replace("|", "\\|")


if __name__ == "__main__":
    said = {}
    for name, make in ((name, make) for entries in TABLE.values() for name, make in entries.items()):
        with tempfile.TemporaryDirectory() as folder:
            try:
                said[name] = message(make, Path(folder))
            except BaseException as error:
                print("##", name, type(error).__name__, str(error)[:300], file=sys.stderr)
                said[name] = "?"
    (Path(__file__).parents[1] / "docs" / "errors.md").write_text(document(said))
