"""What the run that wrote a network says of it in its results.json."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from hfkd.reports.results import RESULTS_NAME

logger = logging.getLogger(__name__)


def results_of(name: str | os.PathLike[str]) -> dict[str, Any]:
    """The results.json of the run whose output folder, checkpoint or file of weights this is; {} without one."""
    path = Path(name).expanduser()
    folder = path.parent if path.is_file() else path
    places = (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,)
    for place in places if folder.is_dir() else ():
        try:
            found = json.loads((place / RESULTS_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none, or damaged
            continue
        if isinstance(found, dict) and isinstance(found.get("config"), dict):
            return found
    return {}


def trained_with_template(name: str) -> bool | None:
    """Whether a language model was trained on prompts in its chat template; None if no run says so."""
    config = results_of(name).get("config", {})
    return config.get("prompts_with_template") or config.get("chat_template")


def warn_of_template(name: str, templated: bool, done: str) -> None:
    """Warn if a network gets prompts in a chat template and was trained without it, or the reverse.

    done: what is done with it, as a predicate.
    """
    trained = trained_with_template(name) if name else None
    if trained is not None and trained != templated:
        logger.warning(
            "%s was trained %s its chat template but %s %s it: %s --chat_template",
            name,
            *(("with", done, "without", "pass") if trained else ("without", done, "with", "leave out")),
        )
