import json
from statistics import stdev

import pytest
from datasets import Dataset

from hfkd.evaluation import SEEDS, evaluate_sets, score

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
        ({"vicuna": {10: PERFECT}}, r"answers to 'vicuna' but no references, only those of \['dolly'\]"),
        ({"dolly": {}}, "no answers to 'dolly'"),
        ({"dolly": {10: ["a"]}}, "1 answers for 2 rows of references"),
    ],
)
def test_answers_that_do_not_fit_are_refused(generations, message):
    with pytest.raises(ValueError, match=message):
        score(generations, REFERENCES)


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
    used, _ = scores["vicuna"].pop("settings"), scores["vicuna"].pop("references")
    assert used == {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "no_repeat_ngram_size": 6} | settings | {
        "add_special_tokens": True
    }
    assert score({"vicuna": answers}, {"vicuna": rows["references"][:]}) == scores
    assert json.loads((tmp_path / "scores.json").read_text())["vicuna"]["rougeL"] == scores["vicuna"]["rougeL"]
    assert "| Vicuna |" in (tmp_path / "scores.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "scores.json", "scores.md", "vicuna-seed10.jsonl", "vicuna-seed20.jsonl",
    ]  # fmt: skip


def test_what_cannot_be_evaluated_is_refused_before_generating(stories, tmp_path):
    rows = Dataset.from_dict({"prompt": ["a"], "references": [["b"]]})
    with pytest.raises(ValueError, match=r"seeds=\(1, 1\): pass at least one seed, each once"):
        evaluate_sets(*stories, {"a": rows}, tmp_path, seeds=(1, 1))
    with pytest.raises(ValueError, match=r"set 'a' has 1 rows with columns \['prompt'\]"):
        evaluate_sets(*stories, {"a": rows.select_columns("prompt")}, tmp_path)
    with pytest.raises(ValueError, match="set 'a' has rows without a reference"):
        evaluate_sets(*stories, {"a": Dataset.from_dict({"prompt": ["a"] * 2, "references": [["b"], []]})}, tmp_path)
    with pytest.raises(ValueError, match="556 positions"):
        evaluate_sets(*stories, {"a": rows}, tmp_path, max_new_tokens=300)
    assert SEEDS == (10, 20, 30, 40, 50)
    assert not any(tmp_path.iterdir())
