"""Scores that earlier calls left in a folder: kept, and told apart from this call's where they do not go together."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfkd.evaluation.scoring import Scores
from hfkd.utils.files import write_atomically
from hfkd.utils.json_file import read_json

SCORES, STUDENTS = "scores.json", "students.json"


def read_scores(folder: Path) -> dict[str, Scores]:
    """{set: scores} of an earlier call; nothing where there is no file. Raises ValueError for one that is no such."""
    path = folder / SCORES
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for scores in found.values():  # JSON has no whole numbers as keys
            scores["per_seed"] = {int(seed): values for seed, values in scores["per_seed"].items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no scores ({error!r}): delete it, or choose another output_dir") from error
    return found


def with_earlier(scores: Mapping[str, Scores], earlier: Mapping[str, Scores]) -> dict[str, Scores]:
    """`scores`, and of `earlier` the other sets.

    Those of other weights or settings than this call's get a remark, `earlier`, which says in what they differ.
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
    return ", ".join(["of other weights"] * ("weights" in changed) + words)


def write_scores(folder: Path, scores: Mapping[str, Scores]) -> None:
    write_atomically(folder / SCORES, json.dumps(scores, indent=2).encode())


def read_students(folder: Path) -> dict[str, str]:
    """{student: its folder of answers} of earlier calls."""
    path = folder / STUDENTS
    return read_json(path) if path.is_file() else {}


def write_students(folder: Path, students: Mapping[str, str]) -> None:
    write_atomically(folder / STUDENTS, json.dumps(students, indent=2).encode())
