"""Answers and references -> scores over seeds, and the table of the papers."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from hfkd.evaluation.sets import SETS
from hfkd.metrics import RougeL

Scores = dict[str, Any]


def score(
    generations: Mapping[str, Mapping[int, Sequence[str]]], references: Mapping[str, Sequence[Sequence[str]]]
) -> dict[str, Scores]:
    """Answers {set: {seed: texts}} and references {set: one list of texts a row} -> {set: scores}.

    Scores of a set: `rougeL` and `exact_match` (0 to 100, means over seeds), `rougeL_sd` and `exact_match_sd` (sample
    standard deviation over seeds, None with one seed), `rows`, and `per_seed`, each seed's own two numbers.
    Raises ValueError for a set without references or of another number of rows.
    """
    scores = {}
    for name, by_seed in generations.items():
        if name not in references:
            raise ValueError(f"there are answers to {name!r} but no references: there are {list(references)}")
        if not by_seed:
            raise ValueError(f"there are no answers to {name!r}: give those of at least one seed")
        scores[name] = summary({seed: score_rows(texts, references[name]) for seed, texts in by_seed.items()})
    return scores


def score_rows(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """One seed's `rougeL`, `exact_match` and both per row, `rougeL_per_example`, `exact_match_per_example`."""
    if len(texts) != len(references):
        raise ValueError(f"{len(texts)} answers and {len(references)} rows of references: give one answer for each row")
    metric = RougeL(keep_in_memory=True)  # the ranks of one run would otherwise share a cache file
    return metric.compute(predictions=list(texts), references=list(references), per_example=True)


def summary(by_seed: Mapping[int, Scores]) -> Scores:
    """What `score_rows` gave for each seed -> mean and standard deviation over the seeds."""
    result: Scores = {}
    for metric in ("rougeL", "exact_match"):
        result |= _mean_and_sd(metric, [scores[metric] for scores in by_seed.values()])
    result["rows"] = len(next(iter(by_seed.values()))["rougeL_per_example"])
    result["per_seed"] = {seed: {m: scores[m] for m in ("rougeL", "exact_match")} for seed, scores in by_seed.items()}
    return result


def _mean_and_sd(name: str, values: Sequence[float]) -> Scores:
    return {name: fmean(values), f"{name}_sd": stdev(values) if len(values) > 1 else None}


def markdown_table(scores: Mapping[str, Scores]) -> str:
    """The scores as a Markdown table: Dolly, SInst, Vicuna, S-NI, UnNI, average, then sets of other names.

    Says which sets are missing and which have another number of rows than the published figures, so that they cannot
    be compared with them. The average is over the comparable ones and says so when they are not all five.
    """
    lines = ["| Set | ROUGE-L | Exact match | Rows | Note |", "|---|---:|---:|---:|---|"]
    comparable = []
    for name, wanted in SETS.items():
        if name not in scores:
            lines.append(f"| {wanted.label} | – | – | 0 | missing |")
            continue
        note = ""
        if scores[name]["rows"] == wanted.rows:
            comparable.append(scores[name])
        else:
            note = f"not comparable with published figures, which have {wanted.rows:,} rows"
        lines.append(_line(wanted.label, scores[name], note))
    if comparable:
        count = f"{len(comparable)} of {len(SETS)} sets"
        partial = "" if len(comparable) == len(SETS) else f"over {count}: not the published average"
        lines.append(_line("Average", average(comparable), partial))
    lines += [_line(name, rows, "") for name, rows in scores.items() if name not in SETS]
    return "\n".join(lines) + "\n"


def students_table(students: Mapping[str, Mapping[str, Scores]]) -> str:
    """ROUGE-L of several students, the paper's row for each: Dolly, SInst, Vicuna, S-NI, UnNI and their average.

    A star marks sets of another number of rows than the published figures; the average is over the sets shown.
    """
    shown = [name for name in SETS if any(name in scores for scores in students.values())]
    lines = [["Student", *(SETS[name].label for name in shown), "Average"], ["---", *["---:"] * (len(shown) + 1)]]
    for student, scores in students.items():
        cells = [_starred(name, scores[name]) if name in scores else "–" for name in shown]
        scored = [scores[name] for name in shown if name in scores]
        mean = average(scored) if scored else None
        lines.append([student, *cells, "–" if mean is None else _cell(mean["rougeL"], mean["rougeL_sd"])])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _starred(name: str, scores: Scores) -> str:
    return _cell(scores["rougeL"], scores["rougeL_sd"]) + ("" if scores["rows"] == SETS[name].rows else " *")


def average(sets: Sequence[Scores]) -> Scores:
    """The average over sets, its standard deviation taken over the seeds' averages."""
    result: Scores = {"rows": sum(scores["rows"] for scores in sets)}
    seeds = set.intersection(*(set(scores["per_seed"]) for scores in sets))
    for metric in ("rougeL", "exact_match"):
        by_seed = [fmean(scores["per_seed"][seed][metric] for scores in sets) for seed in seeds]
        result |= _mean_and_sd(metric, by_seed)
    return result


def _line(label: str, scores: Scores, note: str) -> str:
    cells = [_cell(scores[m], scores[f"{m}_sd"]) for m in ("rougeL", "exact_match")]
    return f"| {label} | {cells[0]} | {cells[1]} | {scores['rows']:,} | {note} |"


def _cell(mean: float, sd: float | None) -> str:
    return f"{mean:.2f}" if sd is None else f"{mean:.2f} ± {sd:.2f}"
