"""Every bad input of the table is refused with the message that docs/errors.md has, and leaves nothing behind."""

from pathlib import Path

import pytest
from bad_input import TABLE, cell, document, message

PAGE = (Path(__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
ENTRIES = {name: make for entries in TABLE.values() for name, make in entries.items()}


@pytest.mark.parametrize("name", ENTRIES)
def test_it_is_refused_in_the_words_of_the_page(tmp_path, name):
    said = message(ENTRIES[name], tmp_path)
    assert f"| {cell(name)} | {cell(said)} |" in PAGE, f"{said}: run `python tests/bad_input.py` and read what changed"


def test_the_page_has_every_entry_and_no_other():
    assert len(ENTRIES) >= 60
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| input")]
    empty = [line for line in document(dict.fromkeys(ENTRIES, "")).splitlines() if line.startswith("| ")]
    names = [line.removesuffix("|  |").removesuffix("| `` |") for line in empty if not line.startswith("| input")]
    assert len(rows) == len(names)
    assert all(row.startswith(name) for row, name in zip(rows, names, strict=True))
