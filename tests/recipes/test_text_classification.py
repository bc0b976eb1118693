"""The recipe for classifiers of texts, as users start it: a teacher from labels, a student from the teacher."""

import json
import re
import shutil

import pytest
import torch
from recipe_toys import SMALL_BERT, classified_flags, results, run, write_classified
from safetensors.torch import load_file
from text_tokenizer import word_tokenizer
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForSequenceClassification, pipeline

SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 3, "eval_strategy": "no"}
LEARNING = {"learning_rate": 0.02, "num_train_epochs": 8, "eval_strategy": "epoch"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_classified(tmp_path_factory.mktemp("texts"))


def test_a_teacher_may_be_compared_with_and_not_learned_from(folder, monkeypatch, tmp_path):
    more = {"kd_weight": 0, "ce_weight": 1, "evaluate_kl": True, "max_steps": 1, "eval_strategy": "steps"}
    run(monkeypatch, "text_classification", *classified_flags(folder, tmp_path / "run", **more))
    assert results(tmp_path / "run")["epochs"][-1]["eval_kl"] > 0


def test_help(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "text_classification", "--help")
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(flag in shown for flag in ("--text_pair_column", "--train_tokenizer", "--hold_out", "--weighting"))


@pytest.fixture(scope="module")
def taught(folder):
    """The folder of a teacher that learnt from labels alone, with a tokenizer of its own, and of its student."""
    changes = ",".join(f"{name}={value}" for name, value in SMALL_BERT.items())
    alone = {"kd_weight": 0, "ce_weight": 1, "train_tokenizer": 60, "student_config": changes, "seed": 1}
    alone |= {"learning_rate": 0.005}  # at a higher one all rows of a class get the same energy
    with pytest.MonkeyPatch.context() as patch:
        flags = classified_flags(folder, folder / "taught", **LEARNING | alone)
        run(patch, "text_classification", *[flag for flag in flags if not flag.startswith("--teacher_name")])
        more = {"teacher_name_or_path": folder / "taught", "temperature": "energy", "weighting": "entropy"}
        run(patch, "text_classification", *classified_flags(folder, folder / "student", **LEARNING | more))
    return folder / "taught", folder / "student"


def test_a_tokenizer_is_trained_on_both_texts_of_pairs(tmp_path, monkeypatch):
    """All second texts, here of other letters, would be unknown tokens."""
    pairs = [{"text": "one two", "other": "αβγ δε", "label": n % 2} for n in range(8)]
    (tmp_path / "classified").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "classified" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    changes = ",".join(f"{name}={value}" for name, value in SMALL_BERT.items())
    alone = {"kd_weight": 0, "ce_weight": 1, "train_tokenizer": 60, "student_config": changes, "max_steps": 1}
    flags = classified_flags(tmp_path, tmp_path / "run", text_pair_column="other", eval_strategy="no", **alone)
    run(monkeypatch, "text_classification", *[flag for flag in flags if not flag.startswith("--teacher_name")])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert tokenizer.unk_token_id not in tokenizer("one two", "αβγ δε")["input_ids"]


def test_both_have_learnt_what_their_results_say(taught):
    teacher, student = map(results, taught)
    assert teacher["teacher_accuracy"] is None
    for found in (teacher, student):
        assert (found["status"], found["best"]["accuracy"]) == ("finished", 1.0)
        assert "texts_per_second" in found
    assert student["teacher_accuracy"] == 1.0
    assert student["config"]["temperature"].startswith("Energy(")
    assert student["config"]["weighting"].startswith("Entropy(")


def test_what_is_saved_classifies_by_name(taught):
    for network in taught:
        classify = pipeline("text-classification", str(network), device="cpu")
        said = [row["label"] for row in classify(["a ask b", "two answer me"])]
        assert said == ["positive", "negative"]
    vocabularies = [AutoTokenizer.from_pretrained(network).get_vocab() for network in taught]
    assert vocabularies[0] == vocabularies[1]


def test_a_pipeline_truncates_to_the_positions_of_the_student(taught):
    classify = pipeline("text-classification", str(taught[1]), device="cpu")
    assert classify.tokenizer.model_max_length == BertConfig().max_position_embeddings
    assert len(classify("a ask b " * 200, truncation=True)) == 1


def test_the_card_and_the_page_are_of_texts(taught):
    card, page = ((taught[1] / name).read_text() for name in ("README.md", "index.html"))
    assert 'model = AutoModelForSequenceClassification.from_pretrained("student")' in card
    assert 'tokenizer = AutoTokenizer.from_pretrained("student")' in card
    assert "pipeline_tag: text-classification" in card
    assert "an item is a row" in card
    assert re.search(r"\| max_length \| \d+ \|", card)
    assert "Accuracy by teacher entropy" in page
    assert "Left out: no per-sample evaluation" not in page
    assert "Left out: the run did not scan" not in page


@pytest.mark.slow
@pytest.mark.parametrize("slots", [{}, {"temperature": "energy", "weighting": "entropy"}])
def test_a_run_that_was_stopped_ends_in_the_same_student(folder, monkeypatch, tmp_path, slots):
    flags = SAVING | slots
    run(monkeypatch, "text_classification", *classified_flags(folder, tmp_path / "whole", **flags))
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for name in ("checkpoint-4", "checkpoint-6"):  # as it was after step 2 of 6
        shutil.rmtree(tmp_path / "stopped" / name)
    (tmp_path / "stopped" / "model.safetensors").unlink()
    run(monkeypatch, "text_classification", *classified_flags(folder, tmp_path / "stopped", **flags))
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [session["first_step"] for session in results(tmp_path / "stopped")["sessions"]] == [0, 2]


def test_rows_are_held_out_of_a_file(folder, monkeypatch, tmp_path):
    lines = [json.loads(line) for line in (folder / "classified" / "train.jsonl").read_text().splitlines()]
    rows = "".join(f"{line['text']},{line['label']}\n" for line in lines)
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    more = {"dataset_name": tmp_path / "rows.csv", "hold_out": 8, "max_steps": 1, "eval_strategy": "steps"}
    run(monkeypatch, "text_classification", *classified_flags(folder, tmp_path / "run", **more, eval_steps=1))
    assert "8 rows of the evaluation split of rows.csv" in (tmp_path / "run" / "README.md").read_text()


# ---- what is refused -------------------------------------------------------------------------------------------------


def stored(folder, name, network, words):
    network.save_pretrained(folder / name)
    words.save_pretrained(folder / name)
    return folder / name


def other_words():
    words = word_tokenizer(pad_token="<pad>", mask_token="<mask>")
    words.add_tokens(["four"])
    return words


def classifier(vocab=16, **more):
    return BertForSequenceClassification(BertConfig(**SMALL_BERT, vocab_size=vocab, **more))


WORDS = other_words()
REFUSED = {
    "no such column": (lambda f: {"text_column": "body"}, "no column 'body'"),
    "no such label": (lambda f: {"label_column": "grade"}, "label_column='grade' is not in the dataset"),
    "no such split": (lambda f: {"eval_split": "test"}, r"no split 'test': it has \['dev', 'train'\]"),
    "no teacher": (lambda f: {"teacher_name_or_path": ""}, "kd_weight=0.5 needs a teacher"),
    "a teacher without a head": (lambda f: {"teacher_name_or_path": f / "masked"}, "no stored weights for"),
    "a teacher of three classes": (
        lambda f: {"teacher_name_or_path": stored(f, "three", classifier(17, num_labels=3), WORDS)},
        "the teacher has 3 classes and the student 2",
    ),
    "a student of other tokens": (
        lambda f: {
            "student_name_or_path": stored(f, "other", BertForMaskedLM(BertConfig(**SMALL_BERT, vocab_size=17)), WORDS),
            "from_config": False,
            "student_config": "",
        },
        "the tokenizers of the student .* differ",
    ),
    "a tokenizer for a stored teacher": (lambda f: {"train_tokenizer": 60}, "has stored weights"),
    "a setting that is not there": (
        lambda f: {"student_config": "depth=1"},
        "cannot be set on a configuration",
    ),
    "no room for text": (lambda f: {"max_length": 0}, "max_length=0 must be 1 or more"),
    "another task": (lambda f: {"task": "masked_lm"}, "cannot be collated to a batch with"),
    "more tokens than positions": (
        lambda f: {"student_config": "max_position_embeddings=2,hidden_size=8,num_attention_heads=2"},
        "has 2 positions: lower max_length to 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_train_something_else_is_refused_before_anything_is_written(folder, monkeypatch, tmp_path, name):
    flags, message = REFUSED[name]
    shutil.copytree(folder, tmp_path / "data", ignore=shutil.ignore_patterns("taught", "student"))
    with pytest.raises(ValueError, match=message):
        run(
            monkeypatch,
            "text_classification",
            *classified_flags(tmp_path / "data", tmp_path / "out", **flags(tmp_path / "data")),
        )
    assert not (tmp_path / "out").exists()


def test_labels_that_a_teacher_has_in_another_order_are_put_right(folder, monkeypatch, tmp_path, caplog):
    names = {"id2label": {0: "positive", 1: "negative"}, "label2id": {"positive": 0, "negative": 1}}
    words = word_tokenizer(pad_token="<pad>", mask_token="<mask>")
    torch.manual_seed(0)
    teacher = stored(tmp_path, "turned", classifier(16, **names), words)
    more = {"teacher_name_or_path": teacher, "max_steps": 1, "eval_strategy": "no"}
    run(monkeypatch, "text_classification", *classified_flags(folder, tmp_path / "run", **more))
    assert "The teacher has the data's classes in another order (positive, negative)" in caplog.text
