"""Computes scores over seeds from answers and references."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from hfkd.evaluation.metrics import RougeL

Scores = dict[str, Any]
OTHER_WEIGHTS = "of other weights"  # in the entry `earlier` of scores that a student had before it was trained further


def score(
    generations: Mapping[str, Mapping[int, Sequence[str]]], references: Mapping[str, Sequence[Sequence[str]]]
) -> dict[str, Scores]:
    """Answers {set: {seed: texts}} and references {set: a list of texts per row} -> {set: scores}.

    Scores of a set: `rougeL` and `exact_match` (0 to 100, means over seeds), `rougeL_sd` and `exact_match_sd` (sample
    standard deviation over seeds, None with one seed), `rows`, and `per_seed`, both values of each seed. Raises
    ValueError for a set without references, or with another number of rows.
    """
    scores = {}
    for name, by_seed in generations.items():
        if name not in references:
            raise ValueError(
                f"there are answers to {name!r} but no references, only those of {list(references)}: add them"
            )
        if not by_seed:
            raise ValueError(f"there are no answers to {name!r}: pass those of at least one seed")
        scores[name] = summary({seed: score_rows(texts, references[name]) for seed, texts in by_seed.items()})
    return scores


def score_rows(
    texts: Sequence[str], references: Sequence[Sequence[str]], rouge_tokenizer: str = "rouge_score"
) -> Scores:
    """The scores of one seed: `rougeL`, `exact_match`, and lists of both per row (`..._per_example`)."""
    if len(texts) != len(references):
        raise ValueError(
            f"there are {len(texts)} answers for {len(references)} rows of references: pass one answer for each row"
        )
    metric = RougeL(keep_in_memory=True)  # otherwise the ranks of a run would share a cache file
    given = {"predictions": list(texts), "references": list(references)}
    return metric.compute(**given, per_example=True, tokenizer=rouge_tokenizer)


def summary(by_seed: Mapping[int, Scores]) -> Scores:
    """Mean and standard deviation over seeds of the results of `score_rows`."""
    result: Scores = {}
    for metric in ("rougeL", "exact_match"):
        result |= mean_and_sd(metric, [scores[metric] for scores in by_seed.values()])
    result["rows"] = len(next(iter(by_seed.values()))["rougeL_per_example"])
    result["per_seed"] = {seed: {m: scores[m] for m in ("rougeL", "exact_match")} for seed, scores in by_seed.items()}
    return result


def mean_and_sd(name: str, values: Sequence[float]) -> Scores:
    return {name: fmean(values), f"{name}_sd": stdev(values) if len(values) > 1 else None}
