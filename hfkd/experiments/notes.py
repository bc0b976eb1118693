"""Notes below a table of runs: failures, and settings in which rows differ."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def notes(rows: Sequence[Mapping[str, Any]], compared: frozenset[str]) -> list[str]:
    """Notes on rows that are only quoted, numbers that papers print differently, failed runs, runs that tolerate NaN,
    runs that were not evaluated at their end, and versions of hfkd and settings in which rows differ unintentionally.

    `compared`: the settings that the rows of the table set.
    """
    quoted = dict.fromkeys(f"{row['method']}: not run, {row['quoted']}" for row in rows if row["quoted"])
    printed = [
        f"{row['name']}: " + ", ".join(f"{source} prints {value:.2f}" for source, value in others.items())
        for row in rows
        if (others := row["printed_elsewhere"])
    ]
    failed = [f"{row['name']}, seed {run['seed']}: failed, {run['failure']}" for row in rows for run in row["failed"]]
    lenient = [f"{row['name']}, seed {seed}: on_nan={on_nan}" for row in rows for seed, on_nan in row["on_nan"].items()]
    early = [
        f"{row['name']}, seed {seed}: last evaluated at epoch {evaluated:.4g} of {end:.4g}"
        for row in rows
        for seed, (evaluated, end) in row["trained_on"].items()
    ]
    return [
        *quoted,
        *printed,
        *failed,
        *lenient,
        *early,
        *_of_versions(rows),
        *_unequal([row for row in rows if not row["quoted"]], compared),
    ]


def _of_versions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    by_version: dict[str, list[str]] = {}
    for row in rows:
        for version in row["hfkd"]:
            by_version.setdefault(version, []).append(row["name"])
    if len(by_version) < 2:
        return []
    told = "; ".join(f"{version} ({', '.join(those)})" for version, those in by_version.items())
    return [f"not one version of hfkd, in which methods may compute something else: {told}"]


def _unequal(rows: Sequence[Mapping[str, Any]], compared: frozenset[str]) -> list[str]:
    given = compared | ({"teacher_checkpoint", "teacher_weights"} if "teacher_name" in compared else set())
    names = sorted({name for row in rows for name in row["settings"]} - given)
    found = []
    for name in names:
        by_value: dict[str, list[str]] = {}
        for row in rows:
            by_value.setdefault(json.dumps(row["settings"].get(name)), []).append(row["name"])
        if len(by_value) > 1:
            told = "; ".join(f"{value} ({', '.join(those)})" for value, those in by_value.items())
            found.append(f"not one protocol: {name} is {told}")
    return found
