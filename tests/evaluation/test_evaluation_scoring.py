import json
from statistics import stdev

import pytest
from datasets import Dataset

from hfkd.evaluation import SEEDS, evaluate_sets, markdown_table, score, students_table
from hfkd.evaluation.sets import SETS

PERFECT, HALF = ["a b", "c d"], ["a b", "x"]
REFERENCES = {"dolly": [["a b"], ["z", "c d"]]}


def test_mean_and_sd_over_seeds():
    scores = score({"dolly": {10: PERFECT, 20: HALF}}, REFERENCES)["dolly"]
    assert scores == {
        "rougeL": 75,
        "rougeL_sd": pytest.approx(stdev([100, 50])),
        "exact_match": 75,
        "exact_match_sd": pytest.approx(stdev([100, 50])),
        "rows": 2,
        "per_seed": {10: {"rougeL": 100, "exact_match": 100}, 20: {"rougeL": 50, "exact_match": 50}},
    }
    assert score({"dolly": {10: HALF}}, REFERENCES)["dolly"]["rougeL_sd"] is None


@pytest.mark.parametrize(
    ("generations", "message"),
    [
        ({"vicuna": {10: PERFECT}}, r"answers to 'vicuna' but no references: there are \['dolly'\]"),
        ({"dolly": {}}, "no answers to 'dolly'"),
        ({"dolly": {10: ["a"]}}, "1 answers and 2 rows of references"),
    ],
)
def test_answers_that_do_not_fit_are_refused(generations, message):
    with pytest.raises(ValueError, match=message):
        score(generations, REFERENCES)


def scores_of(rouge, rows):
    per_seed = {seed: {"rougeL": rouge + seed / 10, "exact_match": 1.0} for seed in (10, 20)}
    values = [seed["rougeL"] for seed in per_seed.values()]
    return {
        "rougeL": sum(values) / 2,
        "rougeL_sd": stdev(values),
        "exact_match": 1.0,
        "exact_match_sd": 0.0,
        "rows": rows,
        "per_seed": per_seed,
    }


def test_table_has_the_papers_order_and_average():
    table = markdown_table({name: scores_of(20 + i, SETS[name].rows) for i, name in enumerate(reversed(SETS))})
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "Dolly", "SInst", "Vicuna", "S-NI", "UnNI", "Average",
    ]  # fmt: skip
    assert "| Dolly | 25.50 ± 0.71 | 1.00 ± 0.00 | 500 |  |" in table
    assert "| Average | 23.50 ± 0.71 | 1.00 ± 0.00 | 12,516 |  |" in table


def test_table_says_what_is_missing_or_cannot_be_compared():
    table = markdown_table({"dolly": scores_of(20, 500), "uinst": scores_of(2, 1050), "tales": scores_of(5, 3)})
    assert "| SInst | – | – | 0 | missing |" in table
    assert "| UnNI | 3.50 ± 0.71 | 1.00 ± 0.00 | 1,050 | not comparable with published figures" in table
    assert "| Average | 21.50 ± 0.71 | 1.00 ± 0.00 | 500 | over 1 of 5 sets: not the published average |" in table
    assert table.endswith("| tales | 6.50 ± 0.71 | 1.00 ± 0.00 | 3 |  |\n")


def test_students_stand_side_by_side_each_with_its_average():
    table = students_table(
        {
            "runs/kd": {"dolly": scores_of(20, 500), "uinst": scores_of(2, 1050)},
            "runs/rkl": {"dolly": scores_of(30, 500)},
            "runs/none": {"tales": scores_of(30, 500)},
        }
    )
    assert table.splitlines() == [
        "| Student | Dolly | UnNI | Average |",
        "| --- | ---: | ---: | ---: |",
        "| runs/kd | 21.50 ± 0.71 | 3.50 ± 0.71 * | 12.50 ± 0.71 |",
        "| runs/rkl | 31.50 ± 0.71 | – | 31.50 ± 0.71 |",
        "| runs/none | – | – | – |",
    ]


def test_every_answer_is_kept_beside_the_scores(stories, tmp_path):
    rows = Dataset.from_dict({"prompt": ["One day", "The"], "references": [["a", "a dog"], ["cat"]]})
    settings = {"max_new_tokens": 8, "max_prompt_length": 16}
    scores = evaluate_sets(*stories, {"vicuna": rows}, tmp_path, seeds=(10, 20), **settings)
    first, written = (
        [json.loads(line) for line in (tmp_path / f"vicuna-seed{seed}.jsonl").read_text().splitlines()]
        for seed in (10, 20)
    )
    assert [row["prompt"] for row in written] == ["One day", "The"]
    assert [row["index"] for row in written] == [0, 1]
    assert [row["references"] for row in written] == [["a", "a dog"], ["cat"]]
    answers = {seed: [row["generation"] for row in rows] for seed, rows in ((10, first), (20, written))}
    assert score({"vicuna": answers}, {"vicuna": rows["references"][:]}) == scores
    assert json.loads((tmp_path / "scores.json").read_text())["vicuna"]["rougeL"] == scores["vicuna"]["rougeL"]
    assert "| Vicuna |" in (tmp_path / "scores.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "scores.json", "scores.md", "vicuna-seed10.jsonl", "vicuna-seed20.jsonl",
    ]  # fmt: skip


def test_what_cannot_be_evaluated_is_refused_before_generating(stories, tmp_path):
    rows = Dataset.from_dict({"prompt": ["a"], "references": [["b"]]})
    with pytest.raises(ValueError, match=r"seeds=\(1, 1\): give at least one, each once"):
        evaluate_sets(*stories, {"a": rows}, tmp_path, seeds=(1, 1))
    with pytest.raises(ValueError, match=r"set 'a': 1 rows of \['prompt'\]"):
        evaluate_sets(*stories, {"a": rows.select_columns("prompt")}, tmp_path)
    with pytest.raises(ValueError, match="set 'a' has rows without a reference"):
        evaluate_sets(*stories, {"a": Dataset.from_dict({"prompt": ["a"] * 2, "references": [["b"], []]})}, tmp_path)
    with pytest.raises(ValueError, match="556 positions"):
        evaluate_sets(*stories, {"a": rows}, tmp_path, max_new_tokens=300)
    assert SEEDS == (10, 20, 30, 40, 50)
    assert not any(tmp_path.iterdir())
