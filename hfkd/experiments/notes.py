"""Notes below a table of runs: failures, and settings in which rows differ."""

import json
from collections.abc import Iterable, Mapping, Sequence
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
    told = _apart((version, row["name"]) for row in rows for version in row["hfkd"])
    return [f"not one version of hfkd, in which methods may compute something else: {told}"] if told else []


def _unequal(rows: Sequence[Mapping[str, Any]], compared: frozenset[str]) -> list[str]:
    given = compared | ({"teacher_checkpoint", "teacher_weights"} if "teacher_name" in compared else set())
    names = sorted({name for row in rows for name in row["settings"]} - given)
    said = {name: _apart((json.dumps(row["settings"].get(name)), row["name"]) for row in rows) for name in names}
    return [f"not one protocol: {name} is {told}" for name, told in said.items() if told]


def _apart(found: Iterable[tuple[str, str]]) -> str:
    """The names of rows by their value, as pairs of both; empty if all have the same."""
    by_value: dict[str, list[str]] = {}
    for value, name in found:
        by_value.setdefault(value, []).append(name)
    told = "; ".join(f"{value} ({', '.join(those)})" for value, those in by_value.items())
    return told if len(by_value) > 1 else ""
