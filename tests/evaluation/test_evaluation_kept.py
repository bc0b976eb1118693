"""What a call leaves in a folder of answers is kept by the next, and told apart where it does not go together."""

import json
import logging

import pytest
from datasets import Dataset
from text_toys import language_model, tokenizer

import hfkd.evaluation.run
from hfkd.evaluation import evaluate_sets
from hfkd.experiments.instruct import InstructArguments, evaluate_students

SMALL = {"max_new_tokens": 4, "max_prompt_length": 16}


@pytest.fixture
def writer():
    return language_model(), tokenizer()


def rows(count=2):
    return Dataset.from_dict({"prompt": ["One day", "The"][:count], "references": [["a dog"], ["cat"]][:count]})


def table(folder):
    lines = (folder / "scores.md").read_text().splitlines()[2:]
    return {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in lines}


def test_rows_are_recorded(writer, tmp_path):
    """Students whose tokenizers split Dolly differently answer as many rows, and others."""
    given = [evaluate_sets(*writer, {"dolly": rows(n)}, tmp_path, seeds=(10,), **SMALL)["dolly"] for n in (2, 2, 1)]
    assert given[0]["references"] == given[1]["references"] != given[2]["references"]


def test_a_later_call_keeps_the_other_sets(writer, tmp_path):
    evaluate_sets(*writer, {"vicuna": rows()}, tmp_path, seeds=(10,), weights="a", **SMALL)
    evaluate_sets(*writer, {"dolly": rows()}, tmp_path, seeds=(10, 20), weights="a", **SMALL)
    kept = json.loads((tmp_path / "scores.json").read_text())
    assert set(kept) == {"dolly", "vicuna"}
    assert "missing" not in table(tmp_path)["Vicuna"]
    assert table(tmp_path)["Average"] == "over 2 sets that are not comparable with published figures"
    assert "earlier" not in kept["vicuna"]


@pytest.mark.parametrize(
    ("first", "second", "remark"),
    [
        ({"weights": "a"}, {"weights": "b"}, "scored earlier, of other weights: in no average"),
        ({"temperature": 0.0}, {}, "scored earlier, with temperature=0.0: in no average"),
    ],
)
def test_other_weights_and_settings_are_in_no_average(writer, tmp_path, first, second, remark):
    evaluate_sets(*writer, {"vicuna": rows()}, tmp_path, seeds=(10,), **SMALL, **first)
    now = evaluate_sets(*writer, {"dolly": rows(1)}, tmp_path, seeds=(10,), **SMALL, **second)
    assert table(tmp_path)["Vicuna"].startswith(remark)
    average = next(line for line in (tmp_path / "scores.md").read_text().splitlines() if "| Average" in line)
    assert average.split("|")[2].strip() == f"{now['dolly']['rougeL']:.2f}"
    # scored once more with the same, they go together again
    evaluate_sets(*writer, {"vicuna": rows()}, tmp_path, seeds=(10,), **SMALL, **second)
    assert "earlier" not in (tmp_path / "scores.md").read_text()


def test_scores_that_are_none_are_refused_before_anything_is_generated(writer, tmp_path):
    (tmp_path / "scores.json").write_text("[]")
    with pytest.raises(ValueError, match=r"scores.json is not a file of scores .* choose another output_dir"):
        evaluate_sets(*writer, {"vicuna": rows()}, tmp_path, seeds=(10,), **SMALL)


@pytest.fixture
def evaluate(writer, tmp_path):
    """Students that are all the same model, by their names, scored on two rows of Vicuna."""
    (tmp_path / "sets").mkdir()
    lines = [json.dumps({"prompt": f"p{i}", "output": "b"}) + "\n" for i in range(2)]
    (tmp_path / "sets" / "vicuna.jsonl").write_text("".join(lines))
    (tmp_path / "sets" / "dolly.jsonl").write_text("".join(lines))

    def evaluated(*names, **keywords):
        given = {"sets_from": str(tmp_path / "sets"), "output_dir": str(tmp_path / "out"), "seeds": [10]} | SMALL
        args = InstructArguments(**(given | {"sets": ["vicuna"]} | keywords))
        evaluate_students(names, lambda name: writer, args)
        return (tmp_path / "out" / "students.md").read_text()

    return evaluated


def test_a_later_call_keeps_the_other_students(evaluate, capsys):
    evaluate("runs/a")
    assert [line.split("|")[1].strip() for line in evaluate("runs/b").splitlines()[2:4]] == ["runs/a", "runs/b"]
    assert "| Student | Dolly | Vicuna | Average |" in evaluate("runs/b", sets=["dolly"])
    assert capsys.readouterr().out.count("| runs/a |") == 3


def test_calls_at_the_same_time_keep_what_the_other_has_scored(evaluate, monkeypatch):
    """As on two GPUs: another student, and another set, are scored while the first call is at work."""
    score_rows = hfkd.evaluation.run.score_rows

    def meanwhile(*given):
        monkeypatch.setattr(hfkd.evaluation.run, "score_rows", score_rows)
        evaluate("runs/b")
        evaluate("runs/a", sets=["dolly"])
        return score_rows(*given)

    monkeypatch.setattr(hfkd.evaluation.run, "score_rows", meanwhile)
    table = evaluate("runs/a").splitlines()
    assert table[0] == "| Student | Dolly | Vicuna | Average |"
    assert [line.split("|")[1].strip() for line in table[2:4]] == ["runs/b", "runs/a"]
    assert "–" not in table[3]


def test_two_students_of_two_calls_never_share_a_folder(evaluate):
    evaluate("runs/a")
    assert evaluate("./runs/a/").count("runs/a |") == 1
    with pytest.raises(ValueError, match=r"\['runs/a', 'runs-a'\] would share a folder of answers"):
        evaluate("runs-a")


def test_a_student_that_was_trained_further_has_its_own_scores_beside_others(evaluate, writer):
    """Those that it had before are in its own table, with a note."""
    evaluate("runs/a", sets=["dolly", "vicuna"])
    writer[0].lm_head.weight.data.mul_(2)
    (line,) = [line for line in evaluate("runs/a").splitlines() if line.startswith("| runs/a")]
    assert line.count("|") == 4  # the student, Vicuna and the average
    assert "| –" not in line
    evaluate("runs/b", sets=["dolly"])
    (line,) = [line for line in evaluate("runs/a").splitlines() if line.startswith("| runs/a")]
    assert line.split("|")[2].strip() == "–"  # Dolly


@pytest.fixture
def chat(writer, monkeypatch):
    monkeypatch.setattr(writer[1], "chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}")


def trained(folder, chat_template):
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"config": {"chat_template": chat_template}}))
    return str(folder)


def test_a_chat_student_scored_without_its_template_is_warned_of(evaluate, chat, caplog, tmp_path):
    evaluate("someone/chat")
    assert "its tokenizer has a chat template, but the prompts are formatted without it" in caplog.text
    caplog.clear()
    evaluate(trained(tmp_path / "with", True))
    assert "was trained with its chat template but is evaluated without it: pass --chat_template" in caplog.text
    caplog.clear()
    evaluate(trained(tmp_path / "without", False))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and "template" in r.message]


def test_a_student_without_a_template_is_not_warned_of(evaluate, caplog):
    evaluate("someone/plain")
    assert "template" not in caplog.text
