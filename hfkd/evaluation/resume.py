"""Keeps the scores of earlier calls in a folder, and marks those that are not comparable with this call's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfkd.evaluation.scoring import OTHER_WEIGHTS, Scores
from hfkd.utils.files import write_atomically
from hfkd.utils.json_file import read_json

SCORES, STUDENTS = "scores.json", "students.json"


def read_scores(folder: Path) -> dict[str, Scores]:
    """{set: scores} of an earlier call; {} without a file. Raises ValueError for an invalid file."""
    path = folder / SCORES
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for scores in found.values():  # keys in JSON are strings
            scores["per_seed"] = {int(seed): values for seed, values in scores["per_seed"].items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a file of scores ({error!r}): delete it, or choose another output_dir"
        ) from error
    return found


def with_earlier(scores: Mapping[str, Scores], earlier: Mapping[str, Scores]) -> dict[str, Scores]:
    """`scores`, extended by the other sets in `earlier`.

    Sets scored with other weights or settings get an entry `earlier` that describes the difference.
    """
    mine = next(iter(scores.values()))["settings"]
    result = dict(scores)
    for name, old in earlier.items():
        if name not in scores:
            apart = _difference(old.get("settings"), mine)
            result[name] = {k: v for k, v in old.items() if k != "earlier"} | ({"earlier": apart} if apart else {})
    return result


def _difference(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> str:
    if old is None:
        return "with settings that were not recorded"
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    words = [f"with {key}={old.get(key)}" for key in changed if key != "weights"]
    return ", ".join([OTHER_WEIGHTS] * ("weights" in changed) + words)


def write_scores(folder: Path, scores: Mapping[str, Scores]) -> None:
    write_atomically(folder / SCORES, json.dumps(scores, indent=2).encode())


def read_students(folder: Path) -> dict[str, str]:
    """{student: folder of its answers} of earlier calls."""
    path = folder / STUDENTS
    return read_json(path) if path.is_file() else {}


def write_students(folder: Path, students: Mapping[str, str]) -> None:
    write_atomically(folder / STUDENTS, json.dumps(students, indent=2).encode())
