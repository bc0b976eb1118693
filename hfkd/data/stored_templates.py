"""Whether the prompts of a dataset already include a chat template, as its responses.json says."""

import json
from pathlib import Path

RESPONSES = "responses.json"  # written by `hfkd generate` beside its rows


def prompts_with_template(dataset_name: str) -> bool:
    """Whether `hfkd generate --chat_template` wrote this folder, or the folder of this file."""
    path = Path(dataset_name).expanduser()
    if not path.exists():
        return False
    try:
        found = json.loads(((path if path.is_dir() else path.parent) / RESPONSES).read_text(encoding="utf-8"))
        return bool(found["settings"]["chat_template"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or someone else's file
        return False
