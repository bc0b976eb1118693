"""Tables like those of the papers, with notes on numbers that are not comparable."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from hfkd.evaluation.scoring import OTHER_WEIGHTS, Scores, mean_and_sd
from hfkd.evaluation.sets import SETS
from hfkd.utils.numbers import markdown_row, with_deviation

# Settings of MiniLLM and DSKD on test that affect results.
PUBLISHED = {
    "rouge_tokenizer": "rouge_score",
    "max_new_tokens": 256,
    "max_prompt_length": 256,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "no_repeat_ngram_size": 6,
}
OTHER_ROWS = (
    "not the same rows for all students (other files or max_rows, or tokenizers that split Dolly differently): scores "
    "cannot be compared"
)
LEGEND = "\\* other rows or settings than the published figures, or an average over other sets than theirs"


def markdown_table(scores: Mapping[str, Scores]) -> str:
    """The scores as a Markdown table: Dolly, SInst, Vicuna, S-NI, UnNI, average, then sets of other names.

    Notes which sets are missing, and which have other rows or settings than the published results, and are thus not
    comparable.
    """
    lines = ["| Set | ROUGE-L | Exact match | Rows | Note |", "|---|---:|---:|---:|---|"]
    for name, wanted in SETS.items():
        if name in scores:
            lines.append(_line(wanted.label, scores[name], "; ".join(differences(name, scores[name]))))
        else:
            lines.append(f"| {wanted.label} | – | – | 0 | missing |")
    if (mean := average(scores)) is not None:
        lines.append(_line("Average", mean, mean["note"]))
    lines += [_line(name, rows, "; ".join(_left_out(rows))) for name, rows in scores.items() if name not in SETS]
    return "\n".join(lines) + "\n"


def students_table(students: Mapping[str, Mapping[str, Scores]]) -> str:
    """ROUGE-L of several students, the paper's row for each: Dolly, SInst, Vicuna, S-NI, UnNI and their average.

    The average is that of `markdown_table`. Scores of a student's earlier weights are not shown. A star marks values
    that are not comparable with the published ones; below it says of which sets the students have answered different
    rows.
    """
    students = {student: _of_these_weights(scores) for student, scores in students.items()}
    shown = [name for name in SETS if any(name in scores for scores in students.values())]
    lines = [["Student", *(SETS[name].label for name in shown), "Average"], ["---", *["---:"] * (len(shown) + 1)]]
    for student, scores in students.items():
        cells = [_starred(scores.get(name), name in scores and bool(differences(name, scores[name]))) for name in shown]
        mean = average(scores)
        lines.append([student, *cells, _starred(mean, mean is not None and bool(mean["note"]))])
    table = "".join(f"{markdown_row(line)}\n" for line in lines)
    said = [LEGEND] if " * |" in table else []
    said += [f"{SETS[name].label}: {OTHER_ROWS}" for name in shown if _different_rows(name, students)]
    return table + "".join(f"\n{one}\n" for one in said)


def _of_these_weights(scores: Mapping[str, Scores]) -> dict[str, Scores]:
    return {name: one for name, one in scores.items() if OTHER_WEIGHTS not in one.get("earlier", "")}


def _different_rows(name: str, students: Mapping[str, Mapping[str, Scores]]) -> bool:
    """Whether some students have answered other rows of a set than others, as far as earlier versions recorded it."""
    return len({scores[name].get("references") for scores in students.values() if name in scores} - {None}) > 1


def differences(name: str, scores: Scores) -> list[str]:
    """The reasons why the scores of a set are not comparable with the published results, if any."""
    settings, rows = scores.get("settings", {}), SETS[name].rows
    found = [
        f"{key}={settings[key]} for {value}" for key, value in PUBLISHED.items() if settings.get(key, value) != value
    ]
    found += [] if settings.get("add_special_tokens", True) else ["prompts in a chat template"]
    if scores["rows"] != rows:
        found.insert(0, f"not comparable with published figures, which have {rows:,} rows")
    elif found:
        found[0] = f"not comparable with published figures: {found[0]}"
    return _left_out(scores) + found


def _left_out(scores: Scores) -> list[str]:
    return [f"scored earlier, {scores['earlier']}: in no average"] if "earlier" in scores else []


def average(scores: Mapping[str, Scores]) -> Scores | None:
    """The average over the sets that are comparable with the published results; if none is, over all available sets.

    `note` describes the sets if it is not the published average. The standard deviation is over the averages of the
    seeds that all of these sets have.
    """
    fit = [name for name in SETS if name in scores and "earlier" not in scores[name]]
    comparable = [name for name in fit if not differences(name, scores[name])]
    sets = [scores[name] for name in comparable or fit]
    if not sets:
        return None
    note = f"over {len(comparable)} of {len(SETS)} sets: not the published average"
    if not comparable:
        note = f"over {len(fit)} sets that are not comparable with published figures"
    whole = len(comparable) == len(SETS)
    return _over_sets(sets) | {"rows": sum(one["rows"] for one in sets), "note": "" if whole else note}


def _over_sets(sets: Sequence[Scores]) -> Scores:
    result: Scores = {}
    seeds = set.intersection(*(set(scores["per_seed"]) for scores in sets))
    for metric in ("rougeL", "exact_match"):
        by_seed = [fmean(scores["per_seed"][seed][metric] for scores in sets) for seed in seeds]
        result |= mean_and_sd(metric, by_seed) if by_seed else {f"{metric}_sd": None}
        result[metric] = fmean(scores[metric] for scores in sets)
    return result


def _line(label: str, scores: Scores, note: str) -> str:
    cells = [with_deviation(scores[m], scores[f"{m}_sd"]) for m in ("rougeL", "exact_match")]
    return markdown_row([label, *cells, f"{scores['rows']:,}", note])


def _starred(scores: Mapping[str, Any] | None, star: bool) -> str:
    return "–" if scores is None else with_deviation(scores["rougeL"], scores["rougeL_sd"]) + (" *" if star else "")
