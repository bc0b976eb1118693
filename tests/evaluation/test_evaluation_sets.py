import json

import pytest
from datasets import Dataset
from text_tokenizer import word_tokenizer

from hfkd.data.text_files import read_jsonl
from hfkd.evaluation import SETS, instruct_sets
from hfkd.evaluation import sets as sets_module
from hfkd.evaluation.callback import RougeArguments
from hfkd.evaluation.sets import with_references
from hfkd.experiments.instruct import InstructArguments


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_real_sets(data_dir, caplog):
    dolly = Dataset.from_dict({"prompt": ["p"] * 3, "response": ["r"] * 3})
    sets = instruct_sets(data_dir / "instruct_eval", dolly_test=dolly)
    assert {name: len(rows) for name, rows in sets.items()} == {
        "dolly": 3, "self-inst": 242, "vicuna": 80, "sinst": 1694, "uinst": 1050,
    }  # fmt: skip
    assert all(rows.column_names == ["prompt", "references"] for rows in sets.values())
    assert sets["dolly"][0] == {"prompt": "p", "references": ["r"]}
    raw = read_jsonl(data_dir / "instruct_eval" / "sinst.jsonl")
    assert sets["sinst"]["references"][:] == raw["output"][:]
    assert max(map(len, raw["output"])) > 1
    assert not caplog.text


def test_a_folder_laid_out_as_the_hub_is(tmp_path, caplog):
    row = {"prompt": "a", "output": "b"}
    write(tmp_path / "sinst" / "11_" / "valid.jsonl", row)
    write(tmp_path / "Vicuna" / "valid.jsonl", row, row | {"output": "c"})
    sets = instruct_sets(tmp_path)
    assert {name: len(rows) for name, rows in sets.items()} == {"vicuna": 2, "sinst": 1}
    assert sets["vicuna"]["references"][:] == [["b"], ["c"]]
    assert "The set self-inst (SInst) is missing in" in caplog.text


def test_the_hub_is_asked_for_the_published_files(tmp_path, monkeypatch):
    asked = []

    def download(repository, file, repo_type):
        asked.append((repository, file, repo_type))
        write(tmp_path / "valid.jsonl", {"prompt": "a", "output": "b"})
        return tmp_path / "valid.jsonl"

    monkeypatch.setattr(sets_module, "hf_hub_download", download)
    assert list(instruct_sets()) == list(SETS)
    assert asked == [
        ("MiniLLM/dolly", "valid.jsonl", "dataset"),
        ("MiniLLM/self-inst", "valid.jsonl", "dataset"),
        ("MiniLLM/Vicuna", "valid.jsonl", "dataset"),
        ("MiniLLM/sinst", "11_/valid.jsonl", "dataset"),
        ("MiniLLM/uinst", "11_/valid.jsonl", "dataset"),
    ]


def test_max_rows_are_the_first_and_no_others_are_prepared(tmp_path):
    write(tmp_path / "vicuna.jsonl", *({"prompt": text, "output": "b"} for text in ("a", "c", 3)))
    found = InstructArguments(sets_from=str(tmp_path), max_rows=2).load(None)
    assert found["vicuna"]["prompt"][:] == ["a", "c"]
    with pytest.raises(ValueError, match="row 2: prompt is 3 instead of text"):
        InstructArguments(sets_from=str(tmp_path)).load(None)


def test_only_the_rows_that_are_scored(tmp_path):
    write(tmp_path / "vicuna.jsonl", *[{"prompt": str(i), "output": "b"} for i in range(100)])
    assert instruct_sets(tmp_path, names=["vicuna"])["vicuna"]["prompt"][:] == [str(i) for i in range(80)]


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match="unknown instruction set 'alpaca': pass some of"):
        instruct_sets(tmp_path, names=["alpaca"])
    with pytest.raises(ValueError, match="has none of"):
        instruct_sets(tmp_path)
    for typo in (tmp_path / "nowhere", "../shered/data"):
        with pytest.raises(ValueError, match="is not a folder"):
            instruct_sets(typo)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        {"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]},
        {"instruction": "Q", "response": "A"},
        {"prompt": "Q", "output": ["A"]},
    ],
)
def test_the_answer_of_any_accepted_row_is_its_reference(row):
    rows = with_references(Dataset.from_list([row]))
    assert rows["references"][:] == [["A"]]
    assert "Q" in rows["prompt"][0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": "Q"}]}, "row 1: messages ends with a turn of 'user'"),
        ({"prompt": "Q", "response": None}, "row 1: response is None instead of text"),
        ({"prompt": "Q", "output": []}, r"row 1: output is \[\] instead of text"),
        ({"prompt": "Q", "output": ["A", None]}, r"row 1: output is \['A', None\] instead of text"),
    ],
)
def test_a_row_without_an_answer_is_named(row, message):
    answered = {
        "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        "prompt": "Q",
        "response": "A",
        "output": ["A"],
    }
    with pytest.raises(ValueError, match=message):
        with_references(Dataset.from_list([{name: answered[name] for name in row}, row]))


def test_prompts_of_a_template_that_writes_answers_otherwise_are_evaluated():
    """Reasoning models begin a thought in the prompt, and leave thoughts out of turns that are over."""
    words = word_tokenizer()
    words.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>{% endif %}"
    )
    rows = with_references(Dataset.from_list([{"prompt": "Q", "response": "A"}]), words, chat_template=True)
    assert rows[0] == {"prompt": "<user>Q<assistant><think>", "references": ["A"]}


def test_rows_that_ask_nothing_are_refused():
    with pytest.raises(ValueError, match="rows with only a column `text` have no answers"):
        with_references(Dataset.from_dict({"text": ["a"]}))


def test_dolly_that_is_split_already_is_refused(tmp_path):
    """Its first training rows would be the test rows."""
    for split in ("train", "dev"):
        write(tmp_path / f"{split}.jsonl", {"prompt": "ask", "response": "a"})
    with pytest.raises(
        ValueError, match=r"has the splits \['dev', 'train'\], but the test rows are taken from the whole"
    ):
        InstructArguments(dolly=str(tmp_path), sets=["dolly"]).load(None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sets": ["alpaca"]}, "unknown instruction set 'alpaca'"),
        ({"sets": []}, "there is no instruction set: pass some of"),
        ({"sets_from": "./nowhere"}, "./nowhere is not a folder"),
        ({"seeds": [1, 1]}, r"^seeds=\(1, 1\): pass at least one seed, each once"),
        ({"seeds": [-1]}, "none below 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size=-1 must be"),
    ],
)
def test_wrong_flags_are_refused_before_a_student_is_loaded(flags, message):
    with pytest.raises(ValueError, match=message):
        InstructArguments(**flags)


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_wrong_seeds_of_dev_answers_are_refused_before_training(seeds):
    with pytest.raises(ValueError, match="rouge_seeds=.*: pass at least one seed, each once, and none below 0"):
        RougeArguments(eval_rouge=True, rouge_seeds=seeds)
